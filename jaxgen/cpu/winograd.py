# SPDX-License-Identifier: MIT
"""Convolutions of 3x3 by Winograd's minimal filtering: 16 products where the definition has 36.

Lavin & Gray 2016 (arXiv:1509.09308) section 4, F(2 x 2, 3 x 3): a tile of 4 x 4 pixels d, of which
the result has 2 x 2 places, is

    A^T [(G g G^T) * (B^T d B)] A

for a kernel g of one channel; with channels the products become matrix products, one for each of
the 16 entries. It rounds a few times more: at 512 channels the error is 7e-7 of the result, root
mean square, and 4e-7 by the definition.
"""

import math
import operator
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxgen.types import Array

TAPS, PLACES = 3, 2  # along an axis, of the kernel and of a tile's result
_SUMS = 128  # what a tile's sums cost at each place, in products, for a channel or a feature
_PART_BYTES = 2**22  # of the transformed tiles that exist at once: what caches hold

_B = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B^T
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T


def is_faster(
    dtype: Any, batch: int, sides: Sequence[int], sizes: Sequence[int], channels: int, features: int
) -> bool:
    """Whether a plain convolution is faster by tiles.

    sides: of the result, H, W; sizes: of the kernel, h, w. A place costs 9 C F products by the
    definition. By tiles it costs 4 C F and the sums, and tiles have places beyond odd sides. This
    tells the shapes right that were measured on 2 cores with AVX-512: 512 maps of 14 x 14 take
    three quarters of the time for 64 channels and 128 features, 1.1 to 1.7 times as long for 32 and
    64; of 7 x 7, 1.0 to 1.1 times for 64 and 128, and four fifths for 128 and 256.

    The kernel is transformed as well, at the cost of an image of `features` tiles, and for few
    places that does not pay: one map of 8 x 8 and 1,280 channels takes twice the time of the plain
    convolution, one of 64 x 64 and 512 two thirds of it.
    """
    if dtype != jnp.float32 or tuple(sizes) != (TAPS, TAPS):
        return False
    places = math.prod(sides)
    in_tiles = math.prod(PLACES * -(-side // PLACES) for side in sides)
    tiled = in_tiles * (4 * channels * features + _SUMS * (channels + features))
    return tiled < places * TAPS**2 * channels * features and batch * places >= channels


def by_tiles(padding: Sequence[tuple[int, int]], x: Array, kernel: Array) -> Array:
    """The convolution of x [B, H, W, C] with a kernel [3, 3, C, F], float32; stride 1.

    padding: (low, high) along H and W, negative to cut; the result is [B, H', W', F]. What does not
    fit into caches is taken in parts: groups of images, and strips of the rows of one image.
    """
    batch, *sides, channels = x.shape
    features = kernel.shape[-1]
    sizes = [n + low + high - TAPS + 1 for n, (low, high) in zip(sides, padding, strict=True)]
    rows, columns = (-(-size // PLACES) for size in sizes)
    entry_bytes = x.dtype.itemsize * (PLACES + 2) ** 2
    image_bytes = entry_bytes * max(channels, features) * rows * columns
    part_bytes = max(_PART_BYTES, entry_bytes * channels * features)  # each reads the whole kernel
    groups = -(-batch // max(part_bytes // image_bytes, 1))
    group = -(-batch // groups)  # images; the last group may have some of zeros
    strips = min(-(-group * image_bytes // part_bytes), rows)
    deep = -(-rows // strips)  # rows of tiles in a strip
    tiles = (deep * strips, columns)
    beyond = [PLACES * n - size for n, size in zip(tiles, sizes, strict=True)]
    around = [(low, high + more, 0) for (low, high), more in zip(padding, beyond, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, groups * group - batch, 0), *around, (0, 0, 0)])
    transformed = _along(_G, [kernel[i] for i in range(TAPS)])  # [4, 3, C, F]
    transformed = _along(_G, [transformed[:, j] for j in range(TAPS)])  # [4, 4, C, F]

    def strip(images: Array, k: Array | int) -> Array:
        """Computes strip k of some images' results: [b, 2 deep, W, F]."""
        part = lax.dynamic_slice_in_dim(images, PLACES * deep * k, PLACES * deep + TAPS - 1, 1)
        return _tiles(part, transformed, deep, columns)

    def whole(images: Array) -> Array:
        """Computes the results of some images, with places beyond their ends."""
        if strips == 1:
            return strip(images, 0)
        out = lax.map(partial(strip, images), jnp.arange(strips))
        return jnp.moveaxis(out, 0, 1).reshape(len(images), -1, *out.shape[3:])

    if groups == 1:
        out = whole(x)
    else:
        out = lax.map(whole, x.reshape(groups, group, *x.shape[1:]))
        out = out.reshape(-1, *out.shape[2:])
    return out[:batch, : sizes[0], : sizes[1]]


def _tiles(x: Array, kernel: Array, rows: int, columns: int) -> Array:
    """The result of rows x columns tiles of an image that just holds them."""
    batch, _, _, channels = x.shape
    size, features = len(_B), kernel.shape[-1]
    tall, wide = (PLACES * (n - 1) + 1 for n in (rows, columns))
    tiles = _along(_B, [x[:, i : i + tall : PLACES] for i in range(size)])
    tiles = _along(_B, [tiles[:, :, :, j : j + wide : PLACES] for j in range(size)])
    tiles = tiles.reshape(size**2, -1, channels)
    products = jnp.matmul(tiles, kernel.reshape(size**2, channels, features))
    products = products.reshape(size, size, batch, rows, columns, features)
    out = _along(_A, [products[j] for j in range(size)])
    out = _along(_A, [out[:, j] for j in range(size)])  # [2, 2, B, rows, columns, F]
    out = out.transpose(2, 3, 0, 4, 1, 5)
    return out.reshape(batch, PLACES * rows, PLACES * columns, features)


def _along(matrix: Sequence[Sequence[float]], parts: list[Array]) -> Array:
    """The product of a matrix and a vector of arrays, stacked: [len(matrix), ...]."""
    return jnp.stack([
        reduce(operator.add, [w * x for w, x in zip(row, parts, strict=True) if w])
        for row in matrix
    ])  # fmt: skip
