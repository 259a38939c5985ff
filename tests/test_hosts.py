# SPDX-License-Identifier: MIT
"""What `--distributed` says where nothing tells it which processes there are."""

import pytest
from support import scripts

from jaxgen.train import hosts

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_a_script_says_what_to_set_where_nothing_describes_the_hosts(tmp_path):
    flags = ["--distributed", "--run-dir", tmp_path / "run"]
    _, errors = scripts.execute("vae", *flags, ok=False)
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --distributed: coordinator_address should be defined. Start")
    assert f"set {hosts.VARIABLES} for each" in line
    assert all(name in hosts.VARIABLES for name in NAMES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "'localhost'; give the host:port of process 0"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; give a whole number, 1 or"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES is '0'; give a whole number, 1 or more"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1'; give a whole number, 0 or more"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2; use 0 to 1"),
    ],
)
def test_variables_that_say_nothing_clear_are_refused(variables, words, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        hosts.join()
