# SPDX-License-Identifier: MIT
"""Scripts as processes and, without the seconds of a start, in this process (for tests)."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from PIL import Image

from jaxgen import script
from jaxgen.cpu import tune
from jaxgen.pictures import images
from support import compilations

ROOT = pathlib.Path(__file__).parent.parent.parent
EXPERIMENTS = ROOT / "experiments"


def command(name: str, *flags) -> list[str]:
    return [sys.executable, str(EXPERIMENTS / f"{name}.py"), *map(str, flags)]


def environment(devices: int = 1) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices} {_quick_flags()}"
    flags += " --xla_cpu_parallel_codegen_split_count=1"  # see conftest.py
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def _quick_flags() -> str:
    """What compiles quickly, unless the test is about the programs that users run."""
    if not jax.config.read("jax_disable_most_optimizations"):
        return ""
    return " ".join(f"--{name}={value}" for name, value in compilations.OLD_EMITTERS.items())


def execute(name: str, *flags, devices: int = 1, ok: bool = True) -> tuple[str, str]:
    """Runs a script in a process of its own; gives its output and its errors."""
    done = subprocess.run(
        command(name, *flags), env=environment(devices), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout, done.stderr


@contextlib.contextmanager
def loaded(name: str, *flags):
    """Yields the module of a script, with its flags as the command line of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
        # both would change this process for good
        patch.setattr(script, "compilation_cache", lambda: None)
        patch.setattr(tune, "tune_cpu", lambda: None)
        yield importlib.import_module(name)


def call(name: str, *flags) -> str:
    """Runs a script in this process; gives its output."""
    output = io.StringIO()
    with loaded(name, *flags) as module, contextlib.redirect_stdout(output):
        module.main()
    return output.getvalue()


def refusal(name: str, *flags) -> str:
    """The one line with which a script refuses its flags, in this process of eight devices."""
    errors = io.StringIO()
    with (
        loaded(name, *flags) as module,
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as stopped,
    ):
        script.main(module.main)
    assert stopped.value.code == 2
    lines = errors.getvalue().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def rows(folder: pathlib.Path) -> list[dict]:
    """The metrics of a run, step by step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def newest_state(folder: pathlib.Path) -> dict[str, int]:
    """The digests of the newest checkpoint: equal numbers are equal bits."""
    newest = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    return json.loads((folder / "checkpoints" / str(newest) / "digests" / "metadata").read_text())


def leave_out_pictures(name: str, patch: pytest.MonkeyPatch) -> None:
    """Lets the runs of a script in this process draw nothing, which takes most of their time."""
    with loaded(name) as module:
        patch.setattr(module, "draw", lambda *inputs: {})
    patch.setattr(images, "save_curves", lambda *inputs: None)


def list_curves(path: pathlib.Path, rows: list[dict], title: str) -> None:
    """Writes what the curves would show; to draw them takes longer than a tiny run."""
    path.write_text(json.dumps([title, rows]))


def width_of(path: pathlib.Path) -> int:
    with Image.open(path) as picture:
        return picture.width
