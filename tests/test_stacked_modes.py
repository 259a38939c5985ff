# SPDX-License-Identifier: MIT
"""Stacked images: what is in their channels, and how many modes a run's draws have."""

import re

import numpy as np
import pytest
from support.scripts import call, refusal

from jaxgen.data import sets
from jaxgen.evaluate import judge, modes

LEVELS = np.array([0, 120, 250], np.uint8)  # the pixels of three classes


@pytest.fixture
def single(tmp_path):
    """Images of 4x4 pixels, all pixels of a class alike."""
    labels = np.arange(60) % 3
    images = np.broadcast_to(LEVELS[labels][:, None, None, None], (60, 4, 4, 1))
    np.savez(tmp_path / "single.npz", images=images, labels=labels)
    return tmp_path / "single.npz"


def of_levels(images):
    """A classifier that is always right, as probabilities."""
    assert images.shape[1:] == (4, 4, 1)
    distance = np.abs(images.mean(axis=(1, 2, 3))[:, None] - LEVELS)
    return np.eye(3)[distance.argmin(axis=1)]


def test_each_channel_holds_one_image():
    images = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3, 1)
    stacked = modes.stack(images, 40, seed=0)
    assert stacked.shape == (40, 2, 3, 3)
    channels = np.moveaxis(stacked, -1, 1).reshape(120, 2, 3)
    matches = (channels[:, None] == images[None, ..., 0]).all(axis=(2, 3))
    assert (matches.sum(axis=1) == 1).all()
    assert matches.any(axis=0).all()  # every image is in one of 120 channels
    assert not (stacked[..., 0] == stacked[..., 1]).all()
    with pytest.raises(ValueError, match="grey ones"):
        modes.stack(stacked, 2, seed=0)


def test_draws_are_counted_beside_real_images(single, tmp_path, monkeypatch):
    flags = ["--data", single, "--num-images", "500"]
    call("studies.stacked_modes", *flags, "--output", tmp_path / "stacked.npz")
    before = (tmp_path / "stacked.npz").read_bytes()
    again = ["--output", tmp_path / "stacked.npz"]
    call("studies.stacked_modes", *flags, *again)
    other = refusal("studies.stacked_modes", *flags, *again, "--seed", "3")
    assert "stacked.npz exists; choose a new --output or remove it first" in other
    assert (tmp_path / "stacked.npz").read_bytes() == before
    train, test = (sets.load(str(tmp_path / "stacked.npz"), split) for split in sets.source.SPLITS)
    assert train.images.shape == test.images.shape == (500, 4, 4, 3)
    tiny = ["--num-devices", "1", "--steps", "1", "--batch-size", "4", "--hidden", "4"]
    tiny += ["--draw-every", "0", "--scan-steps", "1", "--run-dir", tmp_path / "run"]
    call("gan", "--data", tmp_path / "stacked.npz", *tiny)

    monkeypatch.setattr(judge, "train", lambda *sets: judge.Judge(of_levels, 1.0, of_levels))
    lines = call(
        "studies.stacked_modes", *flags, "--action", "count", "--run-dir", tmp_path / "run"
    )
    real, model = (re.findall(r"([\d.]+)", line) for line in lines.splitlines()[1:])
    assert real[:3] == ["27", "27", "500"]
    assert float(real[3]) < 0.05  # nats; 26 / (2 * 500) on average
    assert model[:5] == ["0", "1", "1", "27", "500"]  # grey of a first step: one class everywhere
    assert float(model[5]) == pytest.approx(np.log(27), abs=1e-3)

    other = [*flags[:1], "digits", "--action", "count", "--run-dir", tmp_path / "run"]
    assert "draws images (4, 4, 3), not (8, 8, 3)" in refusal("studies.stacked_modes", *other)
    assert "say which run" in refusal("studies.stacked_modes", *flags, "--action", "count")
    unread = [*flags, "--action", "count", "--run-dir", tmp_path / "run", "--output", "x.npz"]
    assert "--output needs --action stack" in refusal("studies.stacked_modes", *unread)
    assert "--run-dir needs --action count" in refusal(
        "studies.stacked_modes", *flags, "--run-dir", tmp_path / "run"
    )
