# SPDX-License-Identifier: MIT
"""Evaluating several models of one run: each gets its own figures, and nothing compiles twice."""

import pathlib
import sys

import numpy as np
import pytest
from support import compilations

from jaxgen.evaluate import judge, likelihood

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
TINY = (
    "--num-devices", "1", "--num-models", "2", "--steps", "3", "--batch-size", "8",
    "--hidden", "8", "--draw-every", "0", "--scan-steps", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def script():
    """Runs a script by name with flags, in this process; returns its module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        patch.setattr("jaxgen.script.set_up", lambda distributed: None)  # changes this process
        import gan
        import vae

        def call(name, *flags):
            patch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
            module = {"gan": gan, "vae": vae}[name]
            module.main()
            return module

        yield call


def counting(function, counts):
    """The function, noting how much each call compiles."""

    def call(*args, **kwargs):
        with compilations.counted() as seconds:
            result = function(*args, **kwargs)
        counts.append(len(seconds))
        return result

    return call


def test_the_second_model_of_a_vae_compiles_nothing(script, tmp_path, monkeypatch, capsys):
    counts = {"mean_terms": [], "importance_nll": []}
    script("vae", *TINY, "--run-dir", tmp_path / "run")
    for name, numbers in counts.items():
        monkeypatch.setattr(likelihood, name, counting(getattr(likelihood, name), numbers))
    capsys.readouterr()
    script("vae", "--run-dir", tmp_path / "run", "--action", "evaluate", "--nll-samples", "2")

    for first, second in counts.values():
        assert first > 0
        assert second == 0
    lines = capsys.readouterr().out.splitlines()
    bounds = [float(line.split()[1]) for line in lines if "neg_elbo_nats" in line]
    assert len(bounds) == 2
    assert bounds[0] != bounds[1]


def test_the_second_model_of_a_gan_is_drawn_without_reading_or_compiling(
    script, tmp_path, monkeypatch, capsys
):
    counts, restored = [], []
    module = script("gan", *TINY, "--run-dir", tmp_path / "run")
    restore, draws = module.run.restore, module.draws
    monkeypatch.setattr(
        module.run, "restore", lambda *args: restored.append(args) or restore(*args)
    )
    monkeypatch.setattr(module, "draws", counting(draws, counts))
    uniform = lambda images: np.full((len(images), 10), 0.1)  # noqa: E731
    monkeypatch.setattr(judge, "train", lambda train_set, test_set: (uniform, 0.5))
    capsys.readouterr()
    script("gan", "--run-dir", tmp_path / "run", "--action", "evaluate")

    assert len(restored) == 1
    assert counts[0] > 0
    assert counts[1] == 0
    assert "model 1, step 3, 10000 samples:" in capsys.readouterr().out
