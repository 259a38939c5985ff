# SPDX-License-Identifier: MIT
"""How XLA's CPU backend is given convolutions: the same sums, in the form that it is fast at.

Measured on 2 cores, batch 128, float32, jaxlib 0.10.2; what follows "AVX2" on such a machine, the
rest on one with AVX-512, which is four times as fast:

- XLA hands a convolution to its threaded kernels only in one layout: image [B, H, W, C], kernel
  [H, W, C, F], result [B, H, W, F]. It brings others into it by transposing, but only those outside
  of loops (jax-ml/jax#12868). The gradients of a convolution come in other layouts, and so a step
  of training inside `lax.scan` was 7 to 50 times slower. `_in_one_layout` transposes beforehand.
- The gradient of a kernel is a convolution whose image is transposed number by number and whose
  kernel only row by row. `_exchanged` makes the narrower operand the image: 2.6 to 3.6 times faster
  in the last layer of a network, which has few features (28x28x32 -> 1: 8.8 to 3.3 ms). The one
  that is larger along space has to be the image: XLA exchanges others itself, to a form that it has
  no threaded kernel for (AVX2: 64 features of 7x7 on 128 of 8x8, 275 ms).
- A convolution with few features spends its time on gathering neighbourhoods. `_product_first`
  multiplies every pixel with the whole kernel, and adds up shifted results. One with a single
  channel has neighbourhoods that cost nothing to gather: `_neighbourhoods_first` (AVX2:
  28x28x1 -> 32, 6.2 to 3.3 ms).
- The gradient of a strided convolution's image is a convolution that multiplies with zeros, three
  times out of four. `_in_phases` leaves them out (AVX2: 14x14x32 -> 64 of 4x4, 11.0 to 6.0 ms), but
  adds some where a kernel's taps are no multiple of the stride. There `_product_first` has none
  (AVX2: 14x14x32 -> 64 of 3x3, 5.2 to 3.1 ms).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from jaxgen.types import Array


def register() -> None:
    """Makes this the lowering of `lax.conv_general_dilated` for CPU, in this process.

    Other platforms keep theirs. Call it before the first compilation.
    """
    mlir.register_lowering(lax.conv_general_dilated_p, _lower, platform="cpu")


def _lower(
    ctx: mlir.LoweringRuleContext, lhs: ir.Value, rhs: ir.Value, **params: Any
) -> Sequence[ir.Value]:
    x, kernel = map(_shaped, ctx.avals_in)
    form = _form(x, kernel, _shaped(ctx.avals_out[0]), params)
    if form is None:
        return _in_one_layout(ctx, lhs, rhs, **params)
    rearranged = partial(_rearranged, form, params["dimension_numbers"])
    return mlir.lower_fun(rearranged, multiple_results=False)(ctx, lhs, rhs)


def _form(
    x: jax.ShapeDtypeStruct,
    kernel: jax.ShapeDtypeStruct,
    out: jax.ShapeDtypeStruct,
    params: dict[str, Any],
) -> Callable[[Array, Array], Array] | None:
    """Another way to the same sums, as a function of an image [B, ..., C] and a kernel [..., C, F]
    to [B, ..., F]; None where XLA's own is as fast.
    """
    image, weights, result = params["dimension_numbers"]
    strides, padding = params["window_strides"], params["padding"]
    x_dilation, kernel_dilation = params["lhs_dilation"], params["rhs_dilation"]
    if {params["feature_group_count"], params["batch_group_count"]} != {1}:
        return None
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return None

    batch, channels, features = x.shape[image[0]], x.shape[image[1]], kernel.shape[weights[0]]
    pixels, taps, places = _area(x, image), _area(kernel, weights), _area(out, result)
    strided, dilated, spread = (set(n) != {1} for n in (strides, kernel_dilation, x_dilation))
    match strided, dilated, spread:
        case False, False, True:
            # measured at 1.0 (4x4) and 1.8 (3x3) only: 1.6 times faster each by the form it gets
            form = _in_phases if _waste(kernel, weights, x_dilation) < 1.5 else _product_first
            return partial(form, padding, x_dilation, out.dtype)
        case False, False, False if taps > pixels or (taps == pixels and features < batch):
            return partial(_exchanged, padding, out.dtype)
        case False, False, False if taps <= places and taps * features <= 2 * channels:
            return partial(_product_first, padding, x_dilation, out.dtype)
        case _, False, False if channels == 1 < taps <= min(places, features):
            return partial(_neighbourhoods_first, padding, strides, out.dtype)
    return None


def _shaped(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _area(shaped: jax.ShapeDtypeStruct, spec: Sequence[int]) -> int:
    return math.prod(shaped.shape[axis] for axis in spec[2:])


def _waste(kernel: jax.ShapeDtypeStruct, weights: Sequence[int], dilation: Sequence[int]) -> float:
    """How many times too many taps `_in_phases` multiplies: all phases as many as the first."""
    sizes = [kernel.shape[axis] for axis in weights[2:]]
    return math.prod(-(-k // d) * d / k for k, d in zip(sizes, dilation, strict=True))


def _rearranged(
    form: Callable[[Array, Array], Array],
    numbers: lax.ConvDimensionNumbers,
    x: Array,
    kernel: Array,
) -> Array:
    """The convolution of operands in the layouts that `numbers` name, by a form that knows one."""
    image, weights, result = numbers  # each: batch and channels, or features and channels
    x = x.transpose(image[0], *image[2:], image[1])
    kernel = kernel.transpose(*weights[2:], weights[1], weights[0])
    return form(x, kernel).transpose(_inverse((result[0], *result[2:], result[1])))


def _convolve(x: Array, kernel: Array, padding: Sequence[tuple[int, int]], dtype: Any) -> Array:
    """The plain convolution: x [B, ..., C], kernel [..., C, F] -> [B, ..., F]; padding may cut."""
    n = x.ndim - 1
    cut = [(min(low, 0), min(high, 0), 0) for low, high in padding]
    return lax.conv_general_dilated(
        lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *cut, (0, 0, 0)]),
        kernel,
        (1,) * (n - 1),
        [(max(low, 0), max(high, 0)) for low, high in padding],
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, n, *range(1, n)), (n, n - 1, *range(n - 1)), (0, n, *range(1, n))
        ),
        preferred_element_type=dtype,
    )


def _in_phases(
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    dtype: Any,
    x: Array,
    kernel: Array,
) -> Array:
    """An image with d - 1 zeros between its pixels meets every d-th tap only. Which ones goes by
    the result's place modulo d, its phase: each phase's taps become features of their own.

    The result begins `early`, so that all phases see the same pixels, and is cut at the end.
    """
    *sizes, channels, features = kernel.shape
    axes = list(zip(x.shape[1:-1], sizes, padding, dilation, strict=True))
    early = [(d - 1 - low) % d for _, _, (low, _), d in axes]
    sides = [(n - 1) * d + 1 + low + high - k + 1 for n, k, (low, high), d in axes]
    taps = [-(-k // d) for _, k, _, d in axes]
    around = []
    for (n, _, (low, _), d), c, side, s in zip(axes, early, sides, taps, strict=True):
        first = (low + c - (d - 1)) // d
        around.append((first, -(-(side + c) // d) + s - 1 - n - first))

    longer = [(0, s * d - k) for s, (_, k, _, d) in zip(taps, axes, strict=True)]
    kernel = jnp.pad(kernel, [*longer, (0, 0), (0, 0)])
    kernel = kernel.reshape(*_pairs(taps, dilation), channels, features)
    outer, inner = range(0, 2 * len(taps), 2), range(1, 2 * len(taps), 2)  # taps, phases
    kernel = lax.rev(kernel, inner)
    kernel = kernel.transpose(*outer, 2 * len(taps), *inner, 2 * len(taps) + 1)
    out = _convolve(x, kernel.reshape(*taps, channels, -1), around, dtype)

    last = out.ndim - 1
    batch, *places, _ = out.shape
    out = out.reshape(batch, *places, *dilation, features)
    out = out.transpose(0, *_pairs(range(1, last), range(last, 2 * last - 1)), 2 * last - 1)
    out = out.reshape(batch, *map(math.prod, zip(places, dilation, strict=True)), features)
    end = [c + side for c, side in zip(early, sides, strict=True)]
    return lax.slice(out, (0, *early, 0), (batch, *end, features))


def _pairs(first: Iterable[int], second: Iterable[int]) -> list[int]:
    """The two in turns."""
    return [one for pair in zip(first, second, strict=True) for one in pair]


def _exchanged(padding: Sequence[tuple[int, int]], dtype: Any, x: Array, kernel: Array) -> Array:
    """The convolution of the kernel with the image, which is that of the image read backwards."""
    n = x.ndim - 1
    sizes = zip(x.shape[1:n], kernel.shape, padding, strict=False)
    around = [(wide - k + high, wide - k + low) for wide, k, (low, high) in sizes]
    image = kernel.transpose(n, *range(n - 1), n - 1)  # [F, ..., C]
    swapped = _convolve(image, x.transpose(*range(1, n), n, 0), around, dtype)
    return lax.rev(swapped, range(1, n)).transpose(n, *range(1, n), 0)


def _product_first(
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    dtype: Any,
    x: Array,
    kernel: Array,
) -> Array:
    """Every pixel times the kernel [C, taps * F]; then, tap by tap, what goes to which place.

    Where d - 1 zeros lie between pixels, a place gets something from every d-th tap: the phases of
    the result are added up apart, and woven into each other.
    """
    *sizes, channels, features = kernel.shape
    columns = jnp.moveaxis(kernel, -2, 0).reshape(channels, -1)
    total = jnp.promote_types(dtype, jnp.float32)  # half precision is added up in float32
    products = jnp.matmul(x, columns, preferred_element_type=total)
    axes = list(zip(x.shape[1:-1], sizes, padding, dilation, strict=True))
    sides = [(n - 1) * d + 1 + low + high - k + 1 for n, k, (low, high), d in axes]
    places = [-(-side // d) for side, d in zip(sides, dilation, strict=True)]  # of one phase
    lows = [low for low, _ in padding]

    def phase(first: tuple[int, ...]) -> Array:
        """The places `first`, `first` + d, ...: [B, *places, F]."""
        out = jnp.zeros((len(x), *places, features), total)
        for i, tap in enumerate(itertools.product(*map(range, sizes))):
            # the pixel that the first place sees by this tap, and how far behind it that lies
            at = zip(first, tap, lows, dilation, strict=True)
            seen = [divmod(f + t - low, d) for f, t, low, d in at]
            if any(behind for _, behind in seen):
                continue  # a zero, as for all places of the phase
            part = lax.slice_in_dim(products, i * features, (i + 1) * features, axis=-1)
            ends = zip(seen, places, x.shape[1:-1], strict=True)
            around = [(-pixel, count + pixel - n, 0) for (pixel, _), count, n in ends]
            out += lax.pad(part, jnp.zeros((), total), [(0, 0, 0), *around, (0, 0, 0)])
        return out

    def woven(first: tuple[int, ...]) -> Array:
        """All phases that begin with `first`, in turns along the axes after it."""
        axis = len(first)
        if axis == len(sizes):
            return phase(first)
        turns = jnp.stack([woven((*first, f)) for f in range(dilation[axis])], axis + 2)
        return turns.reshape(*turns.shape[: axis + 1], -1, *turns.shape[axis + 3 :])

    out = lax.slice(woven(()), [0] * x.ndim, (len(x), *sides, features))
    return out.astype(dtype)


def _neighbourhoods_first(
    padding: Sequence[tuple[int, int]],
    strides: Sequence[int],
    dtype: Any,
    x: Array,
    kernel: Array,
) -> Array:
    """Every place's neighbourhood as a row [taps], times the kernel [taps, F]; one channel only."""
    *taps, _, features = kernel.shape
    around = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), around)
    reach = [n - k + 1 for n, k in zip(x.shape[1:], taps, strict=False)]  # of the first tap
    seen = [
        lax.slice(
            x,
            (0, *tap, 0),
            (len(x), *(t + n for t, n in zip(tap, reach, strict=True)), 1),
            (1, *strides, 1),
        )
        for tap in itertools.product(*map(range, taps))
    ]
    rows = kernel.reshape(-1, features)
    return jnp.matmul(jnp.concatenate(seen, -1), rows, preferred_element_type=dtype)


def _in_one_layout(
    ctx: mlir.LoweringRuleContext,
    lhs: ir.Value,
    rhs: ir.Value,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,  # the type of the result is in ctx; precision means nothing on CPU
) -> Sequence[ir.Value]:
    """Transposed operands, one convolution in the layout above, its result transposed back."""
    image, weights, result = dimension_numbers  # each: batch and channels, or features and channels
    (out,) = ctx.avals_out
    arranged = (result[0], *result[2:], result[1])
    last = len(image) - 1
    space = list(range(1, last))

    out_type: Any = mlir.aval_to_ir_type(ctx.module_context, out)  # of a ranked tensor
    convolved = stablehlo.convolution(
        ir.RankedTensorType.get([out.shape[axis] for axis in arranged], out_type.element_type),
        _transpose(lhs, (image[0], *image[2:], image[1])),
        _transpose(rhs, (*weights[2:], weights[1], weights[0])),
        dimension_numbers=stablehlo.ConvDimensionNumbers.get(
            input_batch_dimension=0,
            input_feature_dimension=last,
            input_spatial_dimensions=space,
            kernel_output_feature_dimension=last,
            kernel_input_feature_dimension=last - 1,
            kernel_spatial_dimensions=[axis - 1 for axis in space],
            output_batch_dimension=0,
            output_feature_dimension=last,
            output_spatial_dimensions=space,
        ),
        window_strides=mlir.dense_int_array(window_strides),
        padding=mlir.dense_int_elements(padding),
        lhs_dilation=mlir.dense_int_array(lhs_dilation),
        rhs_dilation=mlir.dense_int_array(rhs_dilation),
        feature_group_count=mlir.i64_attr(feature_group_count),
        batch_group_count=mlir.i64_attr(batch_group_count),
    )
    return [_transpose(convolved, _inverse(arranged))]


def _transpose(x: ir.Value, axes: Sequence[int]) -> ir.Value:
    if list(axes) == sorted(axes):
        return x
    return stablehlo.transpose(x, mlir.dense_int_array(axes))


def _inverse(axes: Sequence[int]) -> list[int]:
    return sorted(range(len(axes)), key=lambda i: axes[i])
