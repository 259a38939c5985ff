# SPDX-License-Identifier: MIT
"""Pictures of latent spaces, from functions that encode and decode batches.

decode: z [N, D] -> images float [N, H, W, C] in [-1, 1].
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxgen.pictures import images
from jaxgen.types import AnyArray, Array, Key

Decode = Callable[[AnyArray], Array]
POINTS = 10  # on the way from one latent to another


def views(
    decode: Callable[[AnyArray, AnyArray], Array],
    z: AnyArray,
    labels: AnyArray,
    centre: tuple[AnyArray, AnyArray],
    straight: bool = False,
) -> dict[str, Image.Image]:
    """Draws the space around the codes z [N, D] of images with labels [N].

    Rows from half of the codes to the other half, one code with each of its entries moved and,
    where there are two, all of the space: centre is the mean and the scale [2] of that.
    decode: (z [M, D], labels [M]) -> images; a row keeps the label that it starts with.
    """
    # on the host: on a device, each of these operations would be a program to compile
    z, labels = np.asarray(z), np.asarray(labels)
    rows = min(8, len(z) // 2)
    starts = np.repeat(labels[:rows], POINTS)

    def of_one(label: np.ndarray) -> Decode:
        return lambda z: decode(z, np.broadcast_to(label, z.shape[:1]))

    pictures = {
        "interpolation": interpolation(
            lambda z: decode(z, starts), z[:rows], z[rows : 2 * rows], straight=straight
        ),
        "traversal": traversal(of_one(labels[0]), z[0], np.std(z, axis=0)),
    }
    if z.shape[-1] == 2:
        pictures["manifold"] = manifold(of_one(np.zeros_like(labels[0])), *centre)
    return pictures


def samples(decode: Decode, z: AnyArray, columns: int | None = None) -> Image.Image:
    """Draws a grid of decoded latents [N, D]."""
    return images.grid(images.to_uint8(decode(z)), columns)


def interpolation(
    decode: Decode, start: AnyArray, end: AnyArray, num_steps: int = POINTS, straight: bool = False
) -> Image.Image:
    """Draws rows that go from one latent to another: start, end [R, D] -> R rows.

    Along the great circle (White 2016, arXiv:1609.04468): between draws of N(0, I) a straight
    line passes through the middle, where no draw ever lies. `straight` for codes without a prior.
    """
    return samples(decode, _ways(start, end, num_steps, straight), num_steps)


@partial(jax.jit, static_argnames=("num_steps", "straight"))
def _ways(start: AnyArray, end: AnyArray, num_steps: int, straight: bool) -> Array:
    """The points [R num_steps, D] on the ways from each start to its end, both [R, D]."""
    weights = jnp.linspace(0.0, 1.0, num_steps)
    between = (lambda a, b, w: (1 - w) * a + w * b) if straight else slerp
    rows = jax.vmap(lambda a, b: jax.vmap(lambda w: between(a, b, w))(weights))(start, end)
    return rows.reshape(-1, start.shape[-1])


def slerp(start: Array, end: Array, weight: Array) -> Array:
    """Interpolates two vectors [D] on a sphere; linearly where they span no plane."""
    norms = jnp.linalg.norm(start) * jnp.linalg.norm(end)
    angle = jnp.arccos(jnp.clip(jnp.sum(start * end) / jnp.maximum(norms, 1e-12), -1.0, 1.0))
    straight = (1 - weight) * start + weight * end
    curved = jnp.sin((1 - weight) * angle) * start + jnp.sin(weight * angle) * end
    return jnp.where(jnp.sin(angle) < 1e-3, straight, curved / jnp.maximum(jnp.sin(angle), 1e-3))


def traversal(
    decode: Decode, z: AnyArray, scale: AnyArray, max_rows: int = 10, num_steps: int = 9
) -> Image.Image:
    """Draws a row per latent dimension, widest first: that entry of z [D] at -2.5..2.5 scales.

    scale: [D], how far each dimension reaches (for a VAE, the spread of its posterior means).
    """
    z, scale = np.asarray(z), np.asarray(scale)
    offsets = np.linspace(-2.5, 2.5, num_steps, dtype=np.float32)
    dims = np.argsort(-scale)[:max_rows]
    rows = np.tile(z, (len(dims), num_steps, 1))
    for row, d in zip(rows, dims, strict=True):
        row[:, d] += offsets * scale[d]
    return samples(decode, rows.reshape(-1, len(z)), num_steps)


def manifold(decode: Decode, mean: AnyArray, scale: AnyArray, side: int = 20) -> Image.Image:
    """Draws the whole of a 2-D latent space: a square of Gaussian quantiles around mean [2].

    Kingma & Welling 2014 (arXiv:1312.6114), figure 4.
    """
    quantiles = jax.scipy.stats.norm.ppf(jnp.linspace(0.5 / side, 1 - 0.5 / side, side))
    rows, columns = jnp.meshgrid(-quantiles, quantiles, indexing="ij")
    z = jnp.stack([columns.ravel(), rows.ravel()], axis=-1) * scale[None] + mean[None]
    return samples(decode, z, side)


def normal(key: Key, count: int, latent_dim: int) -> Array:
    """count draws from N(0, I), a key per image, so that a longer grid begins like a short one."""
    return _normal(key, count, latent_dim)


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key: Key, count: int, latent_dim: int) -> Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(lambda k: jax.random.normal(k, (latent_dim,)))(keys)
