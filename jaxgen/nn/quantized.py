# SPDX-License-Identifier: MIT
"""Kernels in 8 bits, for inference: a scale for every output feature.

    kernel[..., o] = stored[..., o] * unit * scale[o]

int8 keeps 254 steps between the largest values of a feature; fp8 (e4m3) keeps 3 bits behind the
first and so small values better. Layers of `linear.py` read a kernel of such a type with its
"kernel_scale" beside it: the product is computed in the layer's type from the stored values, which
that type holds exactly, and scaled afterwards. Only weights are in 8 bits, not what they multiply.

With W8A8 the products of dense layers are of integers: their scales are called "product_scale", and
each row of the input becomes int8 by a scale of its own when the layer is called (`product`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import fields
from jaxgen.types import Array

SCALE = "kernel_scale"  # float32 [O], beside "kernel"
PRODUCT_SCALE = "product_scale"  # in its place: what the kernel multiplies becomes int8 too
SMALLEST, LARGEST = 1e-30, 1e30  # values whose scales float32 holds, at full precision
W8A8 = "w8a8"  # int8, and in dense layers PRODUCT_SCALE


class Kind(NamedTuple):
    """A type of stored values."""

    dtype: np.dtype
    largest: float  # stored value
    unit: float  # a power of two that brings stored values to 1 at most, safe for float16 too


KINDS = {
    "int8": Kind(np.dtype(np.int8), 127, 2.0**-7),
    "fp8": Kind(np.dtype(jnp.float8_e4m3fn), 448, 2.0**-9),
}
UNITS = {kind.dtype.name: kind.unit for kind in KINDS.values()}


def check(kind: str | None) -> str | None:
    """Returns the name of a kind; raises ValueError unless it is in KINDS, W8A8, or None."""
    names = (*KINDS, W8A8)
    if not isinstance(kind, str | None) or (kind is not None and kind not in names):
        raise ValueError(
            f"quantize is {fields.shown(kind)}; use {' or '.join(map(repr, names))}, or None"
        )
    return kind


def stored_kind(kind: str) -> str:
    """The kind of KINDS in which kernels of a kind are stored."""
    return "int8" if kind == W8A8 else kind


def quantize(kernel: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A kernel [..., O] as stored values of the same shape, and their scales float32 [O].

    Features of values below SMALLEST are taken for zeros. Raises ValueError for values of which
    float32 has no such scale.
    """
    dtype, most, unit = KINDS[kind]
    kernel = np.asarray(kernel, np.float32)
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    if not (largest < LARGEST).all():
        raise ValueError(
            f"a kernel has values of {largest.max():.3g}; 8 bits need less than {LARGEST}"
        )
    scale = np.where(largest < SMALLEST, 1, largest) / np.float32(most)
    stored = kernel / scale
    if dtype == np.int8:
        stored = np.rint(stored)
    return stored.astype(dtype), (scale / unit).astype(np.float32)


def dequantize(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The kernel [..., O] that stored values and their scales stand for, float32."""
    return stored.astype(np.float32) * np.float32(UNITS[stored.dtype.name]) * scale


def product(x: Array, stored: Array, scale: Array) -> Array:
    """x [..., D] times the kernel of int8 values [D, O] with their scales: float32 [..., O].

    The largest value of a row of x becomes 127, and the sums are of integers. A row with a value
    that is not finite gives none that is.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    step = jnp.where(largest < SMALLEST, 1, largest) / 127
    rows = jnp.round(x / step).astype(jnp.int8)
    contracted = (((x.ndim - 1,), (0,)), ((), ()))
    sums = jax.lax.dot_general(rows, stored, contracted, preferred_element_type=jnp.int32)
    scale = (scale * UNITS["int8"]).reshape((1,) * (x.ndim - 1) + scale.shape)
    return sums.astype(jnp.float32) * step * scale
