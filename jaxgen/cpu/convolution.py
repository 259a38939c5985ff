# SPDX-License-Identifier: MIT
"""Convolutions on XLA's CPU backend: the same sums, in the forms that it computes fast.

Measured on 2 cores, batch 128, float32, jaxlib 0.10.2; what follows "AVX2" on such a machine, the
rest on one with AVX-512, which is four times as fast:

- XLA has threaded kernels for a convolution in one layout only: image [B, H, W, C], kernel
  [H, W, C, F], result [B, H, W, F]. It transposes other layouts to this one, but only outside of
  loops (jax-ml/jax#12868). The gradients of a convolution come in other layouts, and so a training
  step inside `lax.scan` was 7 to 50 times slower. `_in_one_layout` transposes beforehand.
- The gradient of a kernel is a convolution whose image is transposed number by number and whose
  kernel only row by row. `forms.exchanged` makes the narrower operand the image: 2.6 to 3.6 times
  faster in the last layer of a network, which has few features (28x28x32 -> 1: 8.8 to 3.3 ms). The
  operand that is larger along space has to be the image: XLA exchanges others itself, to a form
  that it has no threaded kernel for (AVX2: 64 features of 7x7 on 128 of 8x8, 275 ms).
- A convolution with few features spends its time on copying neighbourhoods. `forms.product_first`
  multiplies every pixel with the whole kernel, and adds up shifted results. With a single channel,
  copying them costs nothing: `forms.neighbourhoods_first` (AVX2: 28x28x1 -> 32, 6.2 to 3.3 ms).
- The gradient of a strided convolution's image is a convolution of which three in four products
  have a zero as a factor. `forms.in_phases` leaves these out (AVX2: 14x14x32 -> 64 of 4x4, 11.0 to
  6.0 ms), but has other zeros where the kernel's size is no multiple of the stride. There
  `forms.product_first` has none (AVX2: 14x14x32 -> 64 of 3x3, 5.2 to 3.1 ms).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from jaxgen.cpu import forms, winograd
from jaxgen.types import Array


def register() -> None:
    """Makes `_lower` the lowering of `lax.conv_general_dilated` for CPU, in this process.

    Other platforms keep theirs. Call it before the first compilation.
    """
    mlir.register_lowering(lax.conv_general_dilated_p, _lower, platform="cpu")


def _lower(
    ctx: mlir.LoweringRuleContext, lhs: ir.Value, rhs: ir.Value, **params: Any
) -> Sequence[ir.Value]:
    x, kernel = map(_shape, ctx.avals_in)
    form = _form(x, kernel, _shape(ctx.avals_out[0]), params)
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
    """A faster form of the convolution, or None where XLA's own is as fast.

    It is a function of an image [B, ..., C] and a kernel [..., C, F] to [B, ..., F].
    """
    image, weights, result = params["dimension_numbers"]
    strides, padding = params["window_strides"], params["padding"]
    x_dilation, kernel_dilation = params["lhs_dilation"], params["rhs_dilation"]
    if {params["feature_group_count"], params["batch_group_count"]} != {1}:
        return None
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return None

    batch, channels, features = x.shape[image[0]], x.shape[image[1]], kernel.shape[weights[0]]
    # a kernel's taps are its places along space; places are those of the result
    pixels, taps, places = _area(x, image), _area(kernel, weights), _area(out, result)
    strided, dilated, spread = (set(n) != {1} for n in (strides, kernel_dilation, x_dilation))
    match strided, dilated, spread:
        case False, False, True:
            # measured at waste 1.0 (4x4) and 1.8 (3x3) only, each 1.6 times faster in its form
            wasteful = _waste(kernel, weights, x_dilation) >= 1.5
            form = forms.product_first if wasteful else forms.in_phases
            return partial(form, padding, x_dilation, out.dtype)
        case False, False, False if taps > pixels or (taps == pixels and features < batch):
            return partial(forms.exchanged, padding, out.dtype)
        case False, False, False if taps <= places and taps * features <= 2 * channels:
            return partial(forms.product_first, padding, x_dilation, out.dtype)
        case False, False, False if winograd.is_faster(
            x.dtype,
            batch,
            [out.shape[axis] for axis in result[2:]],
            [kernel.shape[axis] for axis in weights[2:]],
            channels,
            features,
        ):
            return partial(winograd.by_tiles, padding)
        case _, False, False if channels == 1 < taps <= min(places, features):
            return partial(forms.neighbourhoods_first, padding, strides, out.dtype)
    return None


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _area(array: jax.ShapeDtypeStruct, spec: Sequence[int]) -> int:
    """The number of places along space."""
    return math.prod(array.shape[axis] for axis in spec[2:])


def _waste(kernel: jax.ShapeDtypeStruct, weights: Sequence[int], dilation: Sequence[int]) -> float:
    """The products that `forms.in_phases` computes, for each that is needed: 1.0 or more."""
    sizes = [kernel.shape[axis] for axis in weights[2:]]
    return math.prod(-(-k // d) * d / k for k, d in zip(sizes, dilation, strict=True))


def _rearranged(
    form: Callable[[Array, Array], Array],
    numbers: lax.ConvDimensionNumbers,
    x: Array,
    kernel: Array,
) -> Array:
    """The convolution of operands in the layouts of `numbers`, by a form that has one layout."""
    image, weights, result = numbers  # each: batch and channels, or features and channels
    x = x.transpose(image[0], *image[2:], image[1])
    kernel = kernel.transpose(*weights[2:], weights[1], weights[0])
    return form(x, kernel).transpose(_inverse((result[0], *result[2:], result[1])))


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
    """The convolution of transposed operands in the layout with threads, transposed back."""
    image, weights, result = dimension_numbers  # each: batch and channels, or features and channels
    (out,) = ctx.avals_out
    order = (result[0], *result[2:], result[1])
    last = len(image) - 1
    space = list(range(1, last))

    out_type: Any = mlir.aval_to_ir_type(ctx.module_context, out)  # of a ranked tensor
    convolved = stablehlo.convolution(
        ir.RankedTensorType.get([out.shape[axis] for axis in order], out_type.element_type),
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
    return [_transpose(convolved, _inverse(order))]


def _transpose(x: ir.Value, axes: Sequence[int]) -> ir.Value:
    if list(axes) == sorted(axes):
        return x
    return stablehlo.transpose(x, mlir.dense_int_array(axes))


def _inverse(axes: Sequence[int]) -> list[int]:
    return sorted(range(len(axes)), key=lambda i: axes[i])
