# SPDX-License-Identifier: MIT
"""Four forms of a convolution that XLA's CPU backend computes fast; `convolution` says when.

x: [B, ..., C], kernel: [..., C, F] -> [B, ..., F] of type `dtype`, for any number of axes of space.
padding: (low, high) along each, negative to cut; dilation: pixels lie d places apart, with zeros
between them. A tap is a place of the kernel.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxgen.types import Array


def in_phases(
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    dtype: Any,
    x: Array,
    kernel: Array,
) -> Array:
    """The convolution of an image with d - 1 zeros between its pixels, without these zeros.

    For d = 2, the pixels x y z, the taps a b c and padding 1, the image with zeros is x 0 y 0 z:

        place     0      1          2      3          4
        result    b x    a x + c y  b y    a y + c z  b z

    A place modulo d is its phase, and each phase needs only some of the taps: (b, 0) in phase 0,
    (a, c) in phase 1. So one plain convolution of x y z, with the phases as features, computes all
    places: (b x, a x + c y), (b y, a y + c z), (b z, a z). Its features, taken in turns, are the
    result and one place more, which is cut.
    """
    *sizes, channels, features = kernel.shape
    per_axis = zip(x.shape[1:-1], sizes, padding, dilation, strict=True)
    axes = [_phases_along(*numbers) for numbers in per_axis]
    taps = [axis.taps for axis in axes]

    # kernel a b c 0 -> [taps, phases]: (a b) (c 0), and with the last phase first (b a) (0 c)
    missing = [(0, n * d - k) for n, d, k in zip(taps, dilation, sizes, strict=True)]
    kernel = jnp.pad(kernel, [*missing, (0, 0), (0, 0)])
    kernel = kernel.reshape(*_in_turns(taps, dilation), channels, features)
    tap_axes, phase_axes = range(0, 2 * len(taps), 2), range(1, 2 * len(taps), 2)
    kernel = lax.rev(kernel, phase_axes)
    kernel = kernel.transpose(*tap_axes, 2 * len(taps), *phase_axes, 2 * len(taps) + 1)
    around = [axis.padding for axis in axes]
    out = _convolve(x, kernel.reshape(*taps, channels, -1), around, dtype)

    last = out.ndim - 1
    batch, *places, _ = out.shape
    out = out.reshape(batch, *places, *dilation, features)
    out = out.transpose(0, *_in_turns(range(1, last), range(last, 2 * last - 1)), 2 * last - 1)
    out = out.reshape(batch, *map(math.prod, zip(places, dilation, strict=True)), features)
    starts, stops = [axis.start for axis in axes], [axis.stop for axis in axes]
    return lax.slice(out, (0, *starts, 0), (batch, *stops, features))


def exchanged(padding: Sequence[tuple[int, int]], dtype: Any, x: Array, kernel: Array) -> Array:
    """The convolution with the kernel as the image and the image as the kernel.

    Its result is the other one read backwards along space.
    """
    last = x.ndim - 1
    space = range(1, last)
    sizes = zip(x.shape[1:last], kernel.shape, padding, strict=False)
    around = [(n - k + high, n - k + low) for n, k, (low, high) in sizes]
    image = kernel.transpose(last, *range(last - 1), last - 1)  # [F, ..., C]
    out = _convolve(image, x.transpose(*space, last, 0), around, dtype)  # [F, ..., B]
    return lax.rev(out, space).transpose(last, *space, 0)


def product_first(
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    dtype: Any,
    x: Array,
    kernel: Array,
) -> Array:
    """The products of all pixels and the kernel [C, taps * F], added up at the result's places.

    Where d - 1 zeros lie between pixels, a place needs every d-th tap only: as in `in_phases`, the
    phases of the result are added up apart, and then their places are taken in turns.
    """
    *sizes, channels, features = kernel.shape
    columns = jnp.moveaxis(kernel, -2, 0).reshape(channels, -1)
    total = jnp.promote_types(dtype, jnp.float32)  # half precision is added up in float32
    products = jnp.matmul(x, columns, preferred_element_type=total)
    per_axis = zip(x.shape[1:-1], sizes, padding, dilation, strict=True)
    result_sizes = [_result_size(*numbers) for numbers in per_axis]
    phase_sizes = [-(-size // d) for size, d in zip(result_sizes, dilation, strict=True)]
    lows = [low for low, _ in padding]

    def phase(start: tuple[int, ...]) -> Array:
        """Computes the places start, start + d, ... of the result: [B, *phase_sizes, F]."""
        out = jnp.zeros((len(x), *phase_sizes, features), total)
        for i, tap in enumerate(itertools.product(*map(range, sizes))):
            # the first place meets this tap at a pixel, or at one of the zeros behind it
            met = zip(start, tap, lows, dilation, strict=True)
            pixels = [divmod(s + t - low, d) for s, t, low, d in met]
            if any(zeros for _, zeros in pixels):
                continue  # and so do all places of this phase
            part = lax.slice_in_dim(products, i * features, (i + 1) * features, axis=-1)
            ends = zip(pixels, phase_sizes, x.shape[1:-1], strict=True)
            around = [(-pixel, size + pixel - n, 0) for (pixel, _), size, n in ends]
            out += lax.pad(part, jnp.zeros((), total), [(0, 0, 0), *around, (0, 0, 0)])
        return out

    def in_turns(start: tuple[int, ...]) -> Array:
        """Interleaves the phases that begin with `start` along the axes after it."""
        axis = len(start)
        if axis == len(sizes):
            return phase(start)
        phases = jnp.stack([in_turns((*start, s)) for s in range(dilation[axis])], axis + 2)
        return phases.reshape(*phases.shape[: axis + 1], -1, *phases.shape[axis + 3 :])

    out = lax.slice(in_turns(()), [0] * x.ndim, (len(x), *result_sizes, features))
    return out.astype(dtype)


def neighbourhoods_first(
    padding: Sequence[tuple[int, int]],
    strides: Sequence[int],
    dtype: Any,
    x: Array,
    kernel: Array,
) -> Array:
    """The neighbourhoods of all places, rows [taps], times the kernel [taps, F]; for C = 1."""
    *sizes, _, features = kernel.shape
    around = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), around)
    reach = [n - k + 1 for n, k in zip(x.shape[1:], sizes, strict=False)]  # pixels a tap meets
    columns = [
        lax.slice(
            x,
            (0, *tap, 0),
            (len(x), *(t + n for t, n in zip(tap, reach, strict=True)), 1),
            (1, *strides, 1),
        )
        for tap in itertools.product(*map(range, sizes))
    ]
    rows = jnp.concatenate(columns, -1)  # [B, ..., taps]
    return jnp.matmul(rows, kernel.reshape(-1, features), preferred_element_type=dtype)


class _Axis(NamedTuple):
    """The numbers of `in_phases` along one axis of space."""

    taps: int  # of each phase
    padding: tuple[int, int]  # of the pixels
    start: int  # the first place of the result among those of all phases
    stop: int  # the place after its last


def _phases_along(pixels: int, taps: int, padding: tuple[int, int], dilation: int) -> _Axis:
    """In the example of `in_phases`: _Axis(taps=2, padding=(0, 1), start=0, stop=5)."""
    start = (dilation - 1 - padding[0]) % dilation  # so that all phases see the same pixels
    stop = start + _result_size(pixels, taps, padding, dilation)
    phase_taps = -(-taps // dilation)
    before = (padding[0] + start - (dilation - 1)) // dilation
    after = -(-stop // dilation) + phase_taps - 1 - pixels - before
    return _Axis(phase_taps, (before, after), start, stop)


def _result_size(pixels: int, taps: int, padding: tuple[int, int], dilation: int) -> int:
    return (pixels - 1) * dilation + 1 + sum(padding) - taps + 1


def _in_turns(first: Iterable[int], second: Iterable[int]) -> list[int]:
    """One number of the first, one of the second, and so on."""
    return [number for pair in zip(first, second, strict=True) for number in pair]


def _convolve(x: Array, kernel: Array, padding: Sequence[tuple[int, int]], dtype: Any) -> Array:
    """The plain convolution of x [B, ..., C] and kernel [..., C, F]; negative padding cuts x."""
    last = x.ndim - 1
    space = range(1, last)
    cut = [(min(low, 0), min(high, 0), 0) for low, high in padding]
    return lax.conv_general_dilated(
        lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *cut, (0, 0, 0)]),
        kernel,
        (1,) * len(space),
        [(max(low, 0), max(high, 0)) for low, high in padding],
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, last, *space), (last, last - 1, *range(last - 1)), (0, last, *space)
        ),
        preferred_element_type=dtype,
    )
