# SPDX-License-Identifier: MIT
"""Between pictures and latents, a few at a time: the autoencoder sets the peak of memory.

The decoder holds several arrays of 128 to 256 channels at full resolution, so a batch goes through
it in chunks of images, and a latent above a size in overlapping tiles. Every piece (a chunk of
images, one tile of them) has the same shape: it is one program, run by `lax.map` or from Python.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.nn.autoencoder_kl import AutoencoderKL
from jaxgen.types import Array, Params

PIXELS_AT_ONCE = 1024 * 1024  # per device: one image of 1024x1024, or four of 512x512
TILE = 128  # latent pixels; larger latents are decoded in tiles of this side
OVERLAP = 4  # neighbouring tiles share a quarter


class Plan(NamedTuple):
    """How a batch is cut. Static: it shapes the program."""

    groups: int  # devices that the batch is divided over
    chunks: int  # pieces of every group's images
    tops: tuple[int, ...]  # first rows of the tiles, in latent pixels
    lefts: tuple[int, ...]
    tile: tuple[int, int]  # height and width of a tile

    @property
    def pieces(self) -> np.ndarray:
        """(chunk, top, left) of every piece, int32 [P, 3]."""
        cuts = [
            (chunk, top, left)
            for chunk in range(self.chunks)
            for top in self.tops
            for left in self.lefts
        ]
        return np.asarray(cuts, np.int32)


def plan(shape: Sequence[int], factor: int, groups: int = 1, tile: int = TILE) -> Plan:
    """The plan for latents [B, h, w, C] whose pixels are `factor` picture pixels wide."""
    b, h, w = shape[:3]
    tops, tile_h = _starts(h, tile)
    lefts, tile_w = _starts(w, tile)
    most = max(1, PIXELS_AT_ONCE // (tile_h * tile_w * factor**2))
    own = b // groups
    size = max(n for n in range(1, own + 1) if own % n == 0 and n <= most)
    return Plan(groups, own // size, tops, lefts, (tile_h, tile_w))


def decode(
    vae: AutoencoderKL, params: Params, z: Array, plan: Plan | None = None
) -> tuple[Array, Array]:
    """Pictures uint8 [B, H, W, 3] of sampled latents [B, h, w, C], and whether each is finite [B].

    plan: None decodes everything at once.
    """
    if plan is None:
        plan = Plan(1, 1, (0,), (0,), (z.shape[1], z.shape[2]))
    cuts = plan.pieces
    if len(cuts) == 1:
        pieces = decode_piece(vae, params, z, plan, cuts[0])[None]
    else:
        pieces = jax.lax.map(lambda cut: decode_piece(vae, params, z, plan, cut), jnp.asarray(cuts))
    return assemble(pieces, plan)


def decode_piece(
    vae: AutoencoderKL, params: Params, z: Array, plan: Plan, cut: Array | np.ndarray
) -> Array:
    """One piece in float32, about -1 to 1: [images, tile height, tile width, 3]."""
    z = _chunk(z, plan, cut[0])
    starts = (jnp.int32(0), jnp.asarray(cut[1]), jnp.asarray(cut[2]), jnp.int32(0))
    z = jax.lax.dynamic_slice(z, starts, (z.shape[0], *plan.tile, z.shape[-1]))
    picture: Any = vae.apply({"params": params}, unscaled(vae, z), method="decode")
    return picture.astype(jnp.float32)


def assemble(pieces: Array, plan: Plan) -> tuple[Array, Array]:
    """The pieces of a plan [P, images, height, width, 3] as the result of `decode`."""
    num_tiles = len(plan.tops) * len(plan.lefts)
    pieces = pieces.reshape(plan.chunks, num_tiles, *pieces.shape[1:])
    whole = pieces[:, 0] if num_tiles == 1 else _blend(pieces, plan)
    picture = _unchunk(whole, plan.groups)
    finite = jnp.isfinite(picture).all(axis=(1, 2, 3))
    levels = jnp.clip(jnp.nan_to_num(picture) / 2 + 0.5, 0, 1) * 255
    return jnp.round(levels).astype(jnp.uint8), finite


def encode_piece(
    vae: AutoencoderKL, params: Params, picture: Array, plan: Plan, index: Array
) -> Array:
    """Mean and log-variance of one chunk of pictures: [images, h, w, 2 C]."""
    moments: Any = vae.apply({"params": params}, _chunk(picture, plan, index), method="encode")
    return jnp.concatenate(moments, axis=-1)


def draw(vae: AutoencoderKL, moments: Sequence[Array], noise: Array, plan: Plan) -> Array:
    """Latents for the sampler from the posterior, [B, h, w, C].

    moments: what `encode_piece` gives for every chunk. noise: unit noise [B, h, w, C].
    """
    mean, logvar = jnp.split(_unchunk(jnp.stack(moments), plan.groups), 2, axis=-1)
    return scaled(vae, mean + jnp.exp(0.5 * logvar) * noise)


def scaled(vae: AutoencoderKL, z: Array) -> Array:
    """The autoencoder's latents as the sampler knows them, of about unit variance."""
    mean, std = _statistics(vae)
    return (z - (vae.shift_factor or 0.0) - mean) * (vae.scaling_factor / std)


def unscaled(vae: AutoencoderKL, z: Array) -> Array:
    """The inverse of `scaled`."""
    mean, std = _statistics(vae)
    return z * (std / vae.scaling_factor) + mean + (vae.shift_factor or 0.0)


def _statistics(vae: AutoencoderKL) -> tuple[Array | float, Array | float]:
    if vae.latents_mean is None or vae.latents_std is None:
        return 0.0, 1.0
    shape = (1, 1, 1, -1)
    return (
        jnp.asarray(vae.latents_mean, jnp.float32).reshape(shape),
        jnp.asarray(vae.latents_std, jnp.float32).reshape(shape),
    )


def _starts(size: int, tile: int) -> tuple[tuple[int, ...], int]:
    """Where tiles begin so that they cover `size` evenly and overlap, and how long they are."""
    if size <= tile:
        return (0,), size
    count = -(-(size - tile) // (tile - tile // OVERLAP)) + 1
    return tuple(int(start) for start in np.linspace(0, size - tile, count).round()), tile


def _chunk(x: Array, plan: Plan, index: Array | np.ndarray) -> Array:
    """Chunk `index` of every group: [B, ...] -> [B / chunks, ...].

    A batch that lies divided over devices stays so: each gives its own part.
    """
    if plan.chunks == 1:
        return x
    groups = x.reshape(plan.groups, plan.chunks, -1, *x.shape[1:])
    part = jax.lax.dynamic_index_in_dim(groups, jnp.asarray(index), axis=1, keepdims=False)
    return part.reshape(-1, *x.shape[1:])


def _unchunk(chunks: Array, groups: int) -> Array:
    """The inverse, from all chunks: [chunks, B / chunks, ...] -> [B, ...]."""
    count, size = chunks.shape[:2]
    parts = chunks.reshape(count, groups, size // groups, *chunks.shape[2:])
    return parts.swapaxes(0, 1).reshape(-1, *chunks.shape[2:])


def _blend(pieces: Array, plan: Plan) -> Array:
    """Tiles [chunks, tiles, images, th, tw, 3] -> pictures, faded into each other where they meet.

    Each tile weighs less towards its edges; the weights are divided out.
    """
    factor = pieces.shape[3] // plan.tile[0]
    size = [factor * (starts[-1] + side) for starts, side in
            zip((plan.tops, plan.lefts), plan.tile, strict=True)]  # fmt: skip
    rows, columns = (_ramp(side * factor, side // OVERLAP * factor) for side in plan.tile)
    window = jnp.asarray(rows[:, None] * columns[None, :], jnp.float32)[None, None, :, :, None]
    canvas = jnp.zeros((pieces.shape[0], pieces.shape[2], *size, pieces.shape[-1]), jnp.float32)
    total = jnp.zeros((1, 1, *size, 1), jnp.float32)
    places = [(top * factor, left * factor) for top in plan.tops for left in plan.lefts]
    for i, (top, left) in enumerate(places):
        here = (..., slice(top, top + window.shape[2]), slice(left, left + window.shape[3]),
                slice(None))  # fmt: skip
        canvas = canvas.at[here].add(window * pieces[:, i])
        total = total.at[here].add(window)
    return canvas / total


def _ramp(length: int, overlap: int) -> np.ndarray:
    """1 in the middle, falling linearly over the overlap at both ends, never 0."""
    i = np.arange(length) + 0.5
    return np.minimum(1.0, np.minimum(i, length - i) / max(overlap, 1))
