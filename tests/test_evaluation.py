# SPDX-License-Identifier: MIT
"""Evaluating several models of one run: each gets its own figures, and nothing compiles twice."""

import re
import sys

import numpy as np
import pytest
from support import compilations, scripts

from jaxgen.evaluate import judge, latents, likelihood

TINY = (
    "--num-devices", "1", "--num-models", "2", "--steps", "3", "--batch-size", "8",
    "--hidden", "8", "--draw-every", "0", "--scan-steps", "1",
)  # fmt: skip


def counting(function, counts):
    """The function, noting how much each call compiles."""

    def call(*args, **kwargs):
        with compilations.counted() as seconds:
            result = function(*args, **kwargs)
        counts.append(len(seconds))
        return result

    return call


def test_grey_pixels_under_a_bernoulli_likelihood_are_neither_trained_on_nor_given_a_bound(
    tmp_path, monkeypatch
):
    rng, run_dir = np.random.default_rng(0), tmp_path / "run"
    black_and_white = 255 * rng.integers(0, 2, (1200, 8, 8), dtype=np.uint8)
    one_is_grey = black_and_white.copy()
    one_is_grey[1100, 3, 3] = 7
    words = "of the pixels are neither black nor white; train with --binarize"
    flags = [*TINY, "--num-models", "1", "--steps", "1", "--no-binarize", "--data"]
    scripts.leave_out_pictures("vae", monkeypatch)
    for name, train in (("grey", one_is_grey), ("binary", black_and_white)):
        np.savez(tmp_path / f"{name}.npz", x_train=train, x_test=black_and_white[:9])

    for data in ("digits", tmp_path / "grey.npz"):
        assert words in scripts.refusal("vae", *flags, data, "--run-dir", run_dir)
        assert not run_dir.exists()
    scripts.call("vae", *flags, tmp_path / "binary.npz", "--run-dir", run_dir)
    np.savez(tmp_path / "binary.npz", x_train=black_and_white, x_test=one_is_grey)
    assert words in scripts.refusal("vae", "--run-dir", run_dir, "--action", "evaluate")


def test_one_test_image_is_too_few_to_evaluate_a_vae(tmp_path, monkeypatch):
    images = np.full((9, 8, 8), 255, np.uint8)
    np.savez(tmp_path / "one.npz", x_train=images, x_test=images[:1])
    run = ["--run-dir", tmp_path / "run"]
    scripts.leave_out_pictures("vae", monkeypatch)
    scripts.call("vae", *TINY, "--data", tmp_path / "one.npz", *run)
    message = scripts.refusal("vae", *run, "--action", "evaluate")
    assert "one.npz has 1 test image; evaluating needs 2 or more" in message


@pytest.mark.slow
def test_a_conditional_vae_is_compared_and_drawn_by_its_codes_with_labels(tmp_path, monkeypatch):
    labels = np.repeat([2, 0, 1], [10, 20, 30])
    same = np.full((60, 8, 8), 200, np.uint8)
    np.savez(tmp_path / "same.npz", x_train=same, y_train=labels, x_test=same, y_test=labels)
    flags = [*TINY, "--num-models", "1", "--data", tmp_path / "same.npz", "--latent-dim", "2"]
    run, comparisons = ["--run-dir", tmp_path / "run"], []
    scripts.leave_out_pictures("vae", monkeypatch)
    monkeypatch.setattr(latents, "report", lambda *inputs: comparisons.append(inputs) or [])

    scripts.call("vae", *flags, "--conditional", "--likelihood", "gaussian", *run)
    drawn = scripts.call("vae", *run, "--action", "sample", "--codes", "mixture")
    scripts.call("vae", *run, "--action", "evaluate")

    assert "64 samples of a mixture of Gaussians over the codes, step 3" in drawn
    encode, decode, train, *_ = comparisons[0]
    codes, pictures = encode(train), decode(np.zeros((60, 2)))
    by_label = [np.unique(codes[labels == label].round(4), axis=0) for label in range(3)]
    assert [len(kinds) for kinds in by_label] == [1, 1, 1]
    assert len(np.unique(np.concatenate(by_label), axis=0)) == 3
    assert sorted(np.unique(pictures, axis=0, return_counts=True)[1]) == [10, 20, 30]


@pytest.mark.slow
def test_the_second_model_of_a_vae_compiles_nothing(tmp_path, monkeypatch):
    counts = {"mean_terms": [], "importance_estimates": []}
    scripts.leave_out_pictures("vae", monkeypatch)
    monkeypatch.setattr(latents, "report", lambda *inputs: [])  # it compiles nothing of the bound
    layers = ["--objective", "k_sample", "--top-dim", "3"]
    scripts.call("vae", *TINY, *layers, "--run-dir", tmp_path / "run")
    monkeypatch.setattr(latents, "report", lambda *args: [])  # of pictures, which take seconds
    for name, numbers in counts.items():
        monkeypatch.setattr(likelihood, name, counting(getattr(likelihood, name), numbers))
    flags = ["--run-dir", tmp_path / "run", "--action", "evaluate", "--nll-samples", "2"]
    output = scripts.call("vae", *flags)

    for first, second in counts.values():
        assert first > 0
        assert second == 0
    lines = output.splitlines()
    bounds = [float(line.split()[1]) for line in lines if "neg_elbo_nats" in line]
    assert len(bounds) == 2
    assert bounds[0] != bounds[1]
    units = [line for line in lines if "active units" in line]
    assert all(re.fullmatch(r"  active units     \d+ of 20 \+ [0-3] of 3", line) for line in units)
    assert len(units) == 2


@pytest.mark.slow
def test_the_second_model_of_a_gan_is_drawn_without_reading_or_compiling(tmp_path, monkeypatch):
    counts, restored = [], []
    scripts.leave_out_pictures("gan", monkeypatch)
    scripts.call("gan", *TINY, "--run-dir", tmp_path / "run")
    module = sys.modules["gan"]
    restore, draws = module.run.restore, module.draws
    monkeypatch.setattr(
        module.run, "restore", lambda *args: restored.append(args) or restore(*args)
    )
    monkeypatch.setattr(module, "draws", counting(draws, counts))
    monkeypatch.setattr(module.quality, "report", lambda *args: [])  # which takes seconds
    uniform = lambda images: np.full((len(images), 10), 0.1)  # noqa: E731
    monkeypatch.setattr(judge, "train", lambda *sets: judge.Judge(uniform, 0.5, uniform))
    output = scripts.call("gan", "--run-dir", tmp_path / "run", "--action", "evaluate")

    assert len(restored) == 1
    assert counts[0] > 0
    assert counts[1] == 0
    assert "model 1 of seed 0, step 3, 10000 samples of the moving average, against" in output


def test_a_gan_of_data_without_classes_has_its_distances(tmp_path, monkeypatch):
    rng, data = np.random.default_rng(0), tmp_path / "grey.npz"
    grey = rng.integers(0, 256, (300, 8, 8), dtype=np.uint8)
    np.savez(data, x_train=grey[:150], x_test=grey[150:])
    scripts.leave_out_pictures("gan", monkeypatch)
    run = ["--run-dir", tmp_path / "run"]
    scripts.call("gan", *TINY, "--num-models", "1", "--data", data, *run)
    monkeypatch.setattr(sys.modules["gan"], "NUM_SAMPLES", 140)
    output = scripts.call("gan", *run, "--action", "evaluate")
    assert "the data has no classes: the figures by class are left out" in output
    assert "against 140 test images" in output
    words = "needs labelled data with two classes or more"
    assert words in scripts.refusal("gan", *run, "--action", "evaluate", "--features", "judge")
