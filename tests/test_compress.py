# SPDX-License-Identifier: MIT
"""Lossless compression by a VAE: every bit comes back, and the size is the bound."""

import re

import numpy as np
import pytest
import scipy.stats
from support.scripts import call, loaded, refusal

from jaxgen.runs import command_line

pytest.importorskip("constriction")
TINY = ["--num-devices", "1", "--draw-every", "0", "--latent-dim", "4", "--hidden", "16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress") / "run"
    call("vae", *TINY, "--steps", "150", "--run-dir", folder)
    return folder


def test_a_file_holds_each_bit_and_weighs_what_the_bound_says(trained, tmp_path):
    flags = ["--run-dir", trained, "--split", "train", "--file", tmp_path / "digits.vae"]
    out = call("compress", *flags)

    # both are of 1,501 images, by draws of their own: 1 % is three standard errors
    assert abs(float(re.search(r"pixel: ([+-][\d.]+) %", out).group(1))) < 1
    size = int(re.search(r"(\d+) in the file", out).group(1))
    assert size == (tmp_path / "digits.vae").stat().st_size < 1501 * 8
    assert "1501 images restored" in call("compress", *flags, "--action", "restore")


def test_other_images_and_other_files_are_refused(trained, tmp_path):
    flags = ["--run-dir", trained, "--num-images", "9", "--file", tmp_path / "nine.vae"]
    call("compress", *flags)
    assert "does not hold these images" in refusal(
        "compress", *flags, "--action", "restore", "--seed", "1"
    )
    (tmp_path / "nine.vae").write_bytes(b"no such thing")
    assert "is no file of compress.py" in refusal("compress", *flags, "--action", "restore")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no-binarize"], "pixels must be drawn as 0 or 1"),
        (["--likelihood", "gaussian"], "pixels must be drawn as 0 or 1"),
        (["--conditional"], "bits back needs q.* alone"),
        (["--top-dim", "2"], "bits back needs q.* alone"),
        (["--pseudo-inputs", "3"], "bits back needs q.* alone"),
    ],
)
def test_a_model_whose_bits_do_not_come_back_is_refused(flags, words):
    with loaded("compress") as module:
        config = command_line.parse("vae", module.vae_model.PRESETS, "", [*TINY, *flags])
        with pytest.raises(ValueError, match=words):
            module.codec_of(config, None, None)  # before it looks at the model


def test_images_come_off_the_stack_in_their_order_with_the_first_words():
    """A codec of one pixel pair and one latent, without networks."""
    with loaded("compress") as module:
        codec = module.Codec(
            lambda bits: (np.array([100.0 * bits[0]]), np.array([40.0])),
            lambda z: np.array([0.5, 1 / (1 + np.exp(-z[0] / 50.0))]),
            1,
        )
        start = module.starting_words(3, 1)
        bits = np.random.default_rng(0).integers(0, 2, (50, 2)).astype(np.int32)
        words = module.compress(codec, bits, start)
        restored, rest = module.restore(codec, words, 50)
    np.testing.assert_array_equal(restored, bits)
    np.testing.assert_array_equal(rest, start)


def test_latents_are_draws_of_the_posterior_and_not_of_what_was_written_before():
    """A posterior of mean 0.5 beside the prior's deviation: unmasked, z would walk away from it."""
    drawn = []
    with loaded("compress") as module:
        std = 1 / module.WIDTH
        codec = module.Codec(
            lambda bits: (np.array([0.5 * std]), np.array([0.99 * std])),
            lambda z: (drawn.append(z[0] / std), np.array([0.5]))[1],
            1,
        )
        module.compress(codec, np.zeros((600, 1), np.int32), module.starting_words(0, 1))
    assert scipy.stats.kstest((np.array(drawn) - 0.5) / 0.99, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.15
