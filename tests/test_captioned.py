# SPDX-License-Identifier: MIT
"""Captioned pictures as training data: the world, token ids, and latents of a small autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import compilations, networks

from jaxgen.data import sets, source
from jaxgen.miniature import captioned
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.weights import tokenizer
from jaxgen.world import reader, scene

COUNT = 70  # more than a block


@pytest.fixture(scope="module")
def train():
    return captioned.world("train", COUNT)


@pytest.fixture(scope="module")
def vae():
    """(encode, params) of an autoencoder that halves pictures; of four pixels it sees one."""
    module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    )
    params = networks.weights_by_path(networks.shapes_of(module, jnp.zeros((1, 4, 4, 3))))

    def encode(params, x):
        return module.apply({"params": params}, x[:, ::2, ::2], method="encode")

    return encode, params


# --- the world ------------------------------------------------------------------------------


def test_pictures_show_their_scenes_and_captions_name_them(train):
    scenes = captioned.world_scenes("train", COUNT)
    pictures, labels = train.source.read(list(range(COUNT)))
    assert pictures.dtype == np.uint8
    assert pictures.shape == (COUNT, 64, 64, 3)
    np.testing.assert_array_equal(labels, np.arange(COUNT))
    for i in range(COUNT):
        one = scene.take(scenes, i)
        assert reader.check(one, reader.read(pictures[i]))["all"]
        assert f"{scene.COLORS[one.color[0]]} {scene.SHAPES[one.shape[0]]}" in train.captions[i]


def test_world_reads_any_rows_in_any_order(train):
    whole, _ = train.source.read(list(range(COUNT)))
    for rows in ([5, 3], [69], [3, 3, 68]):
        pictures, labels = train.source.read(rows)
        np.testing.assert_array_equal(pictures, whole[rows])
        assert labels.tolist() == rows


def test_a_longer_set_begins_with_the_shorter_one(train):
    longer = captioned.world("train", COUNT + 5)
    assert longer.captions[:COUNT] == train.captions
    np.testing.assert_array_equal(longer.source.read([7])[0], train.source.read([7])[0])


def test_streams_share_no_scene():
    streams = ("train", "test", "prompts", "held_out")
    centers = [captioned.world_scenes(name, 50).center[:, 0].ravel() for name in streams]
    assert len(np.unique(np.concatenate(centers))) > 0.99 * 4 * 100


def test_another_stream_of_the_world_compiles_nothing():
    captioned.world_scenes("prompts", 5)
    with compilations.counted() as seconds:
        captioned.world_scenes("held_out", 5, scene.HELD_OUT[[0] * len(scene.SEEN)], 1.0)
    assert seconds == []


def test_splits_of_the_world_have_their_sizes():
    assert captioned.open_split("world", "train", None, 9).source.num_examples == 9
    test = captioned.open_split("world", "test", 64, 9)
    assert test.source.num_examples == len(test.captions) == 1024


def test_the_world_has_one_size_and_at_least_one_scene(tmp_path):
    with pytest.raises(ValueError, match="the world is drawn in 64 pixels; leave --image-size out"):
        captioned.open_split("world", "train", 32, 9)
    with pytest.raises(ValueError, match="0 scenes; use 1 or more"):
        captioned.open_split("world", "train", None, 0)
    with pytest.raises(ValueError, match="there is no folder"):
        captioned.open_split(str(tmp_path / "nowhere"), "train", None, 9)


# --- token ids ------------------------------------------------------------------------------


def test_labels_are_the_ids_of_the_captions_of_the_same_rows(train):
    tokens = tokenizer.train(train.captions, 24)
    ready = captioned.tokenized(train, tokens)
    pictures, ids = ready.read([5, 3])
    assert ready.label_shape == (24,)
    np.testing.assert_array_equal(pictures, train.source.read([5, 3])[0])
    for row, i in zip(ids, (5, 3), strict=True):
        words = [tokens.vocab[word + "</w>"] for word in train.captions[i].split()]
        expected = [tokens.bos_id, *words] + [tokens.eos_id] * (23 - len(words))
        assert row.tolist() == expected
    assert sets.size_in_bytes(ready) == COUNT * 64 * 64 * 3


# --- latents --------------------------------------------------------------------------------


def direct(train, vae, rows):
    """Mean and log-variance of these pictures, encoded one by one."""
    encode, params = vae
    x = train.source.read(rows)[0].astype(np.float32) / 127.5 - 1
    one = jax.jit(encode)
    moments = [one(params, row[None]) for row in x]
    return tuple(np.concatenate(part) for part in zip(*moments, strict=True))


def test_encoded_pictures_are_the_posteriors_of_scaled_latents(train, vae):
    ready = captioned.encoded(train.source, *vae, 0.7)
    found, labels = ready.read([5, 3, 66])
    mean, logvar = direct(train, vae, [5, 3, 66])
    assert found.dtype == ready.dtype == np.float16
    assert found.shape[1:] == ready.image_shape == (16, 16, 8)
    assert labels.tolist() == [5, 3, 66]
    # float16 keeps 11 bits; variances scale with the square
    np.testing.assert_allclose(found[..., :4], 0.7 * mean, rtol=1e-3, atol=1e-3)
    variance = np.exp(found[..., 4:].astype(float))
    np.testing.assert_allclose(variance, 0.7**2 * np.exp(logvar), rtol=5e-3)


def test_encoded_pictures_do_not_depend_on_what_is_read_with_them(train, vae):
    ready = captioned.encoded(train.source, *vae, 1.0)
    whole = source.read_all(ready)
    assert whole.images.dtype == np.float16
    for rows in ([5, 3], [69, 0, 69]):
        np.testing.assert_array_equal(ready.read(rows)[0], whole.images[rows])
        np.testing.assert_array_equal(ready.read(rows)[1], whole.labels[rows])
    assert sets.size_in_bytes(ready) == whole.images.nbytes


def test_scaled_latents_have_unit_variance(train, vae):
    scale = captioned.scale_of_latents(train.source, *vae)
    moments = source.read_all(captioned.encoded(train.source, *vae, scale)).images.astype(float)
    mean, logvar = np.split(moments, 2, axis=-1)
    z = mean + np.exp(logvar / 2) * np.random.default_rng(0).standard_normal(mean.shape)
    assert abs(z.std() - 1) < 0.01  # of 71,680 numbers: one percent is four standard errors


def test_scale_of_known_moments_is_their_inverse_deviation(train):
    """Means of +2 and -2 and a variance of 5: deviation 3; the mean's offset of 10 is no spread."""

    def encode(params, x):
        sign = jnp.where(jnp.arange(8) % 2 == 0, 2.0, -2.0)
        mean = jnp.broadcast_to(10 + sign[None, :, None, None], (len(x), 8, 8, 4))
        return mean, jnp.full_like(mean, np.log(5.0))

    assert captioned.scale_of_latents(train.source, encode, {}, count=3) == 0.3333
