# SPDX-License-Identifier: MIT
"""Lossless compression by a VAE: every bit comes back, and the size is the bound."""

import re

import numpy as np
import pytest
import scipy.stats
from support.scripts import call, loaded, refusal

from jaxgen.data import npz, sets
from jaxgen.runs import command_line

pytest.importorskip("constriction")
TINY = ["--num-devices", "1", "--draw-every", "0", "--latent-dim", "4", "--hidden", "16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress") / "run"
    call("vae", *TINY, "--steps", "150", "--run-dir", folder)
    return folder


def test_a_file_holds_each_bit_and_weighs_what_the_bound_says(trained, tmp_path, monkeypatch):
    file, output = tmp_path / "digits.vae", tmp_path / "digits.npz"
    flags = ["--run-dir", trained, "--file", file]
    out = call("compress", *flags, "--split", "train")

    # both are of 1,501 images, by draws of their own: 1 % is three standard errors
    assert abs(float(re.search(r"pixel: ([+-][\d.]+) %", out).group(1))) < 1
    size = int(re.search(r"(\d+) in the file", out).group(1))
    assert size == file.stat().st_size < 1501 * 8

    with loaded("compress") as module, monkeypatch.context() as patch:
        options = command_line.read(module.vae_model.Config, str(trained), "vae").run
        images = module.binary_images(module.Config(str(trained), file, split="train"), options)
        patch.setattr(sets, "open_source", lambda *args, **kwargs: pytest.fail("it reads the data"))
        out = call("compress", *flags, "--action", "restore")
    assert f"1501 images restored, each bit as it was: {output}" in out
    np.testing.assert_array_equal(npz.read_split(output, "train", 2**20).images, 255 * images)
    assert f"{output} exists; choose a new --output" in refusal(
        "compress", *flags, "--action", "restore"
    )


@pytest.fixture(scope="module")
def nine(trained, tmp_path_factory):
    """A file of nine images, and the state of its run, so that it is read only once."""
    file = tmp_path_factory.mktemp("nine") / "nine.vae"
    call("compress", "--run-dir", trained, "--num-images", "9", "--file", file)
    with loaded("compress") as module:
        config = command_line.read(module.vae_model.Config, str(trained), "vae")
        return file, module.run.restore(config, module.vae.build, module.open_blank)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda old: {"shape": (9, 4, 16, 1)}, "holds images (4, 16, 1), the run (8, 8, 1)"),
        (lambda old: {"model": bytes(32)}, "is of another model than the one in "),
        (lambda old: {"images": bytes(32)}, ": other images than were compressed; restore on "),
        (lambda old: {"shape": (0, 8, 8, 1)}, ": other images than were compressed; restore on "),
        (lambda old: {"words": old.words[:0]}, ": the words end before the images; restore on "),
        (lambda old: {"words": np.append(old.words, 0)}, ": Invalid compressed data"),
    ],
)
def test_a_file_of_something_else_is_said_to_be_that(
    change, words, nine, trained, tmp_path, monkeypatch
):
    file, state = nine
    other = tmp_path / "other.vae"
    with loaded("compress") as module:
        monkeypatch.setattr(module.run, "restore", lambda *args: state)
        old = module.read(file)
        module.write(other, old._replace(**change(old)))
        flags = ["--run-dir", trained, "--file", other, "--action", "restore"]
        text = refusal("compress", *flags)
    assert f"{other}{' ' * (words[0] != ':')}{words}" in text
    assert list(tmp_path.iterdir()) == [other]


def test_a_file_that_is_damaged_anywhere_is_said_to_be_that(nine, tmp_path):
    data, other = nine[0].read_bytes(), tmp_path / "other.vae"
    with loaded("compress") as module:
        magic = len(module.MAGIC)
        flipped = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(magic, len(data))]
        for damaged in [*flipped, data[:-4], data[:-1], data + bytes(4), data[: magic + 9]]:
            other.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{other}: it is damaged; a new one is needed"):
                module.read(other)
        for foreign in (b"", b"no such thing", data[1:], b"jaxgen bits back 1" + data):
            other.write_bytes(foreign)
            with pytest.raises(ValueError, match=f"{other} is no file of compress.py"):
                module.read(other)


def test_more_images_than_there_are_are_refused(trained, tmp_path):
    flags = ["--run-dir", trained, "--file", tmp_path / "x.vae", "--num-images", "297"]
    assert "--num-images is 297, and digits has 296 test images" in refusal("compress", *flags)
    assert "cannot be written" in refusal("compress", *flags[:2], "--file", f"{__file__}/x.vae")
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.vae").write_text("somebody's")
    assert "x.vae exists; choose a new --file or remove it" in refusal("compress", *flags[:4])
    assert (tmp_path / "x.vae").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("action", "flag", "value"),
    [
        ("restore", "--num-images", 9),
        ("restore", "--split", "train"),
        ("restore", "--seed", 1),
        ("compress", "--output", "digits.npz"),
    ],
)
def test_a_flag_of_the_other_action_is_refused(action, flag, value, tmp_path):
    flags = ["--run-dir", tmp_path, "--file", tmp_path / "x.vae", "--action", action, flag, value]
    other = {"compress": "restore", "restore": "compress"}[action]
    assert f"{flag} needs --action {other}; leave it out" in refusal("compress", *flags)


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
