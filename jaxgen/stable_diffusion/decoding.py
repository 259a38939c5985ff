# SPDX-License-Identifier: MIT
"""The autoencoder turns latents into pictures and back, in pieces, since it sets the memory's peak.

The decoder holds several arrays of 128 to 256 channels at full resolution, so a batch goes through
it in chunks of images, and a latent above a size in overlapping tiles. Every piece (one tile of a
chunk of images) has the same shape: it is one program, run by `lax.map` or from Python.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import fields
from jaxgen.nn.stable_diffusion.autoencoder_tiny import Autoencoder
from jaxgen.types import Array, Params

PIXELS_AT_ONCE = 1024 * 1024  # per device: one image of 1024x1024, or four of 512x512
TILE = 128  # latent pixels; larger latents are decoded in tiles of this side
OVERLAP = 4  # neighbouring tiles share a quarter


class Cut(NamedTuple):
    """How a batch is cut into pieces. Static: it shapes the program."""

    groups: int  # of images, one on each device that the batch is divided over
    chunks: int  # of every group's images
    tops: tuple[int, ...]  # first rows of the tiles, in latent pixels
    lefts: tuple[int, ...]
    tile: tuple[int, int]  # height and width of a tile

    @property
    def origins(self) -> np.ndarray:
        """The P pieces begin at these (chunk, top, left), int32 [P, 3]."""
        origins = [
            (chunk, top, left)
            for chunk in range(self.chunks)
            for top in self.tops
            for left in self.lefts
        ]
        return np.asarray(origins, np.int32)


def check_tile(tile: Any) -> int:
    """Returns the side of a tile, in latent pixels; raises ValueError unless it is a number."""
    tile = fields.plain(tile)
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise ValueError(f"vae_tile is {fields.shown(tile)}; it must be a whole number, at least 1")
    return tile


def cut_of(shape: Sequence[int], factor: int, groups: int = 1, tile: int = TILE) -> Cut:
    """Plans the cut of latents [B, h, w, C] whose pixels are `factor` picture pixels wide."""
    b, h, w = shape[:3]
    tops, tile_h = _starts(h, tile)
    lefts, tile_w = _starts(w, tile)
    most = max(1, PIXELS_AT_ONCE // (tile_h * tile_w * factor**2))
    own = b // groups
    size = max(n for n in range(1, own + 1) if own % n == 0 and n <= most)
    return Cut(groups, own // size, tops, lefts, (tile_h, tile_w))


def decode(
    vae: Autoencoder, params: Params, z: Array, cut: Cut | None = None
) -> tuple[Array, Array]:
    """Decodes sampled latents [B, h, w, C]: pictures uint8 [B, H, W, 3], and which are finite [B].

    cut: None decodes everything at once.
    """
    if cut is None:
        cut = Cut(1, 1, (0,), (0,), (z.shape[1], z.shape[2]))
    origins = cut.origins
    if len(origins) == 1:
        pieces = decode_piece(vae, params, z, cut, origins[0])[None]
    else:
        pieces = jax.lax.map(
            lambda origin: decode_piece(vae, params, z, cut, origin), jnp.asarray(origins)
        )
    return assemble(pieces, cut)


def decode_piece(
    vae: Autoencoder, params: Params, z: Array, cut: Cut, origin: Array | np.ndarray
) -> Array:
    """Decodes the piece that begins at `origin`: [images, tile height, tile width, 3].

    The result is float32, about -1 to 1.
    """
    z = _chunk(z, cut, origin[0])
    starts = (jnp.int32(0), jnp.asarray(origin[1]), jnp.asarray(origin[2]), jnp.int32(0))
    z = jax.lax.dynamic_slice(z, starts, (z.shape[0], *cut.tile, z.shape[-1]))
    picture: Any = vae.apply({"params": params}, unscaled(vae, z), method="decode")
    return picture.astype(jnp.float32)


def assemble(pieces: Array, cut: Cut) -> tuple[Array, Array]:
    """Joins the pieces of a cut, [P, images, height, width, 3], to the result of `decode`."""
    num_tiles = len(cut.tops) * len(cut.lefts)
    pieces = pieces.reshape(cut.chunks, num_tiles, *pieces.shape[1:])
    whole = pieces[:, 0] if num_tiles == 1 else _blend(pieces, cut)
    picture = _unchunk(whole, cut.groups)
    finite = jnp.isfinite(picture).all(axis=(1, 2, 3))
    levels = jnp.clip(jnp.nan_to_num(picture) / 2 + 0.5, 0, 1) * 255
    return jnp.round(levels).astype(jnp.uint8), finite


def encode_chunk(vae: Autoencoder, params: Params, picture: Array, cut: Cut, index: Array) -> Array:
    """Encodes one chunk of pictures: mean and log-variance, [images, h, w, 2 C]."""
    moments: Any = vae.apply({"params": params}, _chunk(picture, cut, index), method="encode")
    return jnp.concatenate(moments, axis=-1)


def draw(vae: Autoencoder, moments: Sequence[Array], noise: Array, cut: Cut) -> Array:
    """Draws latents for the sampler from the posterior, [B, h, w, C].

    moments: what `encode_chunk` gives for every chunk. noise: unit noise [B, h, w, C].
    """
    mean, logvar = jnp.split(_unchunk(jnp.stack(moments), cut.groups), 2, axis=-1)
    return scaled(vae, mean + jnp.exp(0.5 * logvar) * noise)


def scaled(vae: Autoencoder, z: Array) -> Array:
    """Scales the autoencoder's latents to about unit variance, as the sampler takes them."""
    mean, std = _statistics(vae)
    return (z - (vae.shift_factor or 0.0) - mean) * (vae.scaling_factor / std)


def unscaled(vae: Autoencoder, z: Array) -> Array:
    """Inverts `scaled`."""
    mean, std = _statistics(vae)
    return z * (std / vae.scaling_factor) + mean + (vae.shift_factor or 0.0)


def _statistics(vae: Autoencoder) -> tuple[Array | float, Array | float]:
    if vae.latents_mean is None or vae.latents_std is None:
        return 0.0, 1.0
    shape = (1, 1, 1, -1)
    return (
        jnp.asarray(vae.latents_mean, jnp.float32).reshape(shape),
        jnp.asarray(vae.latents_std, jnp.float32).reshape(shape),
    )


def _starts(size: int, tile: int) -> tuple[tuple[int, ...], int]:
    """Spreads overlapping tiles evenly over `size`: their first pixels, and a tile's length."""
    if size <= tile:
        return (0,), size
    count = -(-(size - tile) // (tile - tile // OVERLAP)) + 1
    return tuple(int(start) for start in np.linspace(0, size - tile, count).round()), tile


def _chunk(x: Array, cut: Cut, index: Array | np.ndarray) -> Array:
    """Takes chunk `index` of every group: [B, ...] -> [B / chunks, ...].

    A batch that lies divided over devices stays so: each device gives its own part.
    """
    if cut.chunks == 1:
        return x
    groups = x.reshape(cut.groups, cut.chunks, -1, *x.shape[1:])
    part = jax.lax.dynamic_index_in_dim(groups, jnp.asarray(index), axis=1, keepdims=False)
    return part.reshape(-1, *x.shape[1:])


def _unchunk(chunks: Array, groups: int) -> Array:
    """Inverts `_chunk`, from all chunks: [chunks, B / chunks, ...] -> [B, ...]."""
    count, size = chunks.shape[:2]
    parts = chunks.reshape(count, groups, size // groups, *chunks.shape[2:])
    return parts.swapaxes(0, 1).reshape(-1, *chunks.shape[2:])


def _blend(pieces: Array, cut: Cut) -> Array:
    """Fades tiles [chunks, tiles, images, th, tw, 3] into each other where they meet: pictures.

    Each tile weighs less towards its edges; the sum is divided by the sum of the weights.
    """
    factor = pieces.shape[3] // cut.tile[0]
    size = [factor * (starts[-1] + side) for starts, side in
            zip((cut.tops, cut.lefts), cut.tile, strict=True)]  # fmt: skip
    rows, columns = (_ramp(side * factor, side // OVERLAP * factor) for side in cut.tile)
    window = jnp.asarray(rows[:, None] * columns[None, :], jnp.float32)[None, None, :, :, None]
    canvas = jnp.zeros((pieces.shape[0], pieces.shape[2], *size, pieces.shape[-1]), jnp.float32)
    total = jnp.zeros((1, 1, *size, 1), jnp.float32)
    corners = [(top * factor, left * factor) for top in cut.tops for left in cut.lefts]
    for i, (top, left) in enumerate(corners):
        here = (..., slice(top, top + window.shape[2]), slice(left, left + window.shape[3]),
                slice(None))  # fmt: skip
        canvas = canvas.at[here].add(window * pieces[:, i])
        total = total.at[here].add(window)
    return canvas / total


def _ramp(length: int, overlap: int) -> np.ndarray:
    """Weights that are 1 in the middle and fall linearly towards both ends, never to 0."""
    i = np.arange(length) + 0.5
    return np.minimum(1.0, np.minimum(i, length - i) / max(overlap, 1))


def check_finite(finite: np.ndarray, dtype: Any) -> None:
    """Raises ValueError that says which pictures [B] are not finite, and what to do about it."""
    if finite.all():
        return
    wider = "bfloat16 or float32" if dtype == jnp.float16 else "float32"
    advice = f"load the model with dtype {wider}"
    if dtype == jnp.float32:
        advice = "check the checkpoint's weights, the sampler and the guidance scale"
    bad = ", ".join(str(j) for j in np.flatnonzero(~finite))
    raise ValueError(f"image {bad} is not finite in {dtype.name}; {advice}")
