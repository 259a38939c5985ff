# SPDX-License-Identifier: MIT
"""Between pictures and latents in pieces: chunks of a batch exactly, tiles within what eyes see."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pipeline_cases
from support.networks import psnr

from jaxgen.stable_diffusion import decoding

TINY = pipeline_cases.pipeline("sd1")
VAE, PARAMS = TINY.networks.vae, TINY.params["vae"]


def smooth_latents(batch, size):
    """Latents as pictures have them: low frequencies and a little noise."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((batch, size // 8, size // 8, 4))
    smooth = jax.image.resize(coarse, (batch, size, size, 4), "cubic")
    return np.array(smooth + 0.02 * rng.standard_normal((batch, size, size, 4)), np.float32)


def decoded(z, cut):
    return jax.jit(lambda params, z: decoding.decode(VAE, params, z, cut))(PARAMS, z)


@pytest.mark.parametrize(
    ("shape", "groups", "chunks"),
    [
        ((8, 128, 128, 4), 1, 8),  # 1024 x 1024: one image at a time
        ((8, 64, 64, 4), 1, 2),
        ((8, 64, 64, 4), 4, 1),
        ((6, 64, 64, 4), 1, 2),  # at most four, and equal parts: three
        ((7, 64, 64, 4), 1, 7),
        ((1, 16, 16, 4), 1, 1),
    ],
)
def test_batches_are_cut_so_that_a_megapixel_is_decoded_at_once(shape, groups, chunks):
    found = decoding.cut_of(shape, 8, groups)
    assert found.chunks == chunks
    assert (found.tops, found.lefts) == ((0,), (0,))


@pytest.mark.parametrize("size", [129, 150, 192, 256, 300])
def test_tiles_cover_the_picture_and_overlap(size):
    found = decoding.cut_of((1, size, 96, 4), 8)
    assert found.tile == (128, 96)
    assert found.lefts == (0,)
    covered = [set(range(top, top + 128)) for top in found.tops]
    assert set.union(*covered) == set(range(size))
    shared = [len(a & b) for a, b in itertools.pairwise(covered)]
    assert min(shared) >= 128 // decoding.OVERLAP - 1


def test_up_to_a_tile_nothing_is_tiled():
    assert decoding.cut_of((1, 128, 128, 4), 8) == decoding.Cut(1, 1, (0,), (0,), (128, 128))


def test_chunks_are_exact(monkeypatch):
    z = smooth_latents(4, 16)
    whole, finite = decoded(z, None)
    assert whole.shape == (4, 32, 32, 3)
    assert whole.dtype == jnp.uint8
    assert finite.all()
    monkeypatch.setattr(decoding, "PIXELS_AT_ONCE", 32 * 32)
    for groups in (1, 2):
        cut = decoding.cut_of(z.shape, 2, groups)
        assert cut.chunks == 4 // groups
        np.testing.assert_array_equal(decoded(z, cut)[0], whole)


def test_pieces_from_python_are_the_pieces_of_one_dispatch():
    z = smooth_latents(2, 24)
    cut = decoding.cut_of(z.shape, 2, tile=16)._replace(chunks=2)
    at_once, _ = decoded(z, cut)
    one = jax.jit(lambda params, z, origin: decoding.decode_piece(VAE, params, z, cut, origin))
    pieces = jnp.stack([one(PARAMS, z, origin) for origin in cut.origins])
    one_by_one, _ = decoding.assemble(pieces, cut)
    np.testing.assert_array_equal(one_by_one, at_once)


def test_tiles_look_like_the_whole_picture():
    """Norms see one tile instead of all; random weights feel it more than trained ones."""
    z = smooth_latents(1, 128)
    whole, _ = decoded(z, None)
    cut = decoding.cut_of(z.shape, 2, tile=64)
    assert len(cut.tops) == len(cut.lefts) == 3
    tiled, finite = decoded(z, cut)
    assert finite.all()
    print(f"tiles: {psnr(tiled, whole):.1f} dB")
    assert psnr(tiled, whole) > 30  # 32.7 found; 35.4 for 192 latent pixels in tiles of 128
    steps = [np.abs(np.diff(np.asarray(x, float), axis=1)).max() for x in (tiled, whole)]
    assert steps[0] <= 1.1 * steps[1]  # no seam


def test_equal_tiles_blend_to_the_picture_they_were_cut_from():
    picture = np.random.default_rng(1).standard_normal((1, 1, 2, 40, 28, 3)).astype(np.float32)
    cut = decoding.Cut(1, 1, (0, 5, 12), (0, 6), (8, 8))
    tiles = [
        picture[:, :, :, 2 * top : 2 * top + 16, 2 * left : 2 * left + 16]
        for _, top, left in cut.origins
    ]
    blended = decoding._blend(jnp.asarray(np.concatenate(tiles, axis=1)), cut)
    np.testing.assert_allclose(blended, picture[:, 0], atol=1e-6)


def test_an_image_that_is_not_finite_is_told_apart():
    z = smooth_latents(2, 16)
    z[1, 3, 3, 0] = np.nan
    whole, finite = decoded(z, None)
    np.testing.assert_array_equal(finite, [True, False])
    assert whole[0].std() > 0


def test_latents_are_scaled_for_the_sampler_and_back():
    class Statistics:
        latents_mean, latents_std = (1.0, 2.0, 3.0, 4.0), (0.5, 1.0, 2.0, 4.0)
        scaling_factor, shift_factor = 0.2, 0.1

    z = np.random.default_rng(2).standard_normal((1, 2, 2, 4)).astype(np.float32)
    scaled = decoding.scaled(Statistics, z)
    expected = (z - 0.1 - np.arange(1, 5)) * 0.2 / np.array([0.5, 1, 2, 4])
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)
    np.testing.assert_allclose(decoding.unscaled(Statistics, scaled), z, rtol=1e-4, atol=1e-5)


def test_the_posterior_is_drawn_with_its_own_spread():
    rng = np.random.default_rng(3)
    mean, logvar, noise = rng.standard_normal((3, 4, 2, 2, 4)).astype(np.float32)
    moments = [np.concatenate([mean[i : i + 2], logvar[i : i + 2]], -1) for i in (0, 2)]
    cut = decoding.Cut(1, 2, (0,), (0,), (2, 2))
    found = decoding.draw(VAE, moments, noise, cut)
    np.testing.assert_allclose(
        found, VAE.scaling_factor * (mean + np.exp(logvar / 2) * noise), rtol=1e-5, atol=1e-6
    )
