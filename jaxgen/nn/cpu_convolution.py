# SPDX-License-Identifier: MIT
"""How XLA's CPU backend is given convolutions: the same sums, in the form that it is fast at.

Measured on 2 cores, batch 128, float32, jaxlib 0.10.2:

- XLA hands a convolution to its threaded kernels only in one layout: image [B, H, W, C], kernel
  [H, W, C, F], result [B, H, W, F]. It brings others into it by transposing, but only those outside
  of loops (jax-ml/jax#12868). The gradients of a convolution come in other layouts, and so a step
  of training inside `lax.scan` was 7 to 50 times slower. `_in_one_layout` transposes beforehand.
- The gradient of a kernel is a convolution whose image is transposed number by number and whose
  kernel only row by row. `_exchanged` makes the narrower operand the image: 2.6 to 3.6 times faster
  in the last layer of a network, which has few features (28x28x32 -> 1: 8.8 to 3.3 ms).
- A convolution with few features spends its time on gathering neighbourhoods. `_product_first`
  multiplies every pixel with the whole kernel, and adds up shifted results.
"""

import itertools
import math
from collections.abc import Sequence
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
    out = _shaped(ctx.avals_out[0])
    numbers = params["dimension_numbers"]
    if _is_plain(params) and jnp.issubdtype(x.dtype, jnp.floating):
        channels, features = x.shape[numbers.lhs_spec[1]], kernel.shape[numbers.rhs_spec[0]]
        taps, places = _area(kernel, numbers.rhs_spec), _area(out, numbers.out_spec)
        arguments = (numbers, params["padding"], out.dtype)
        if taps > places and features < x.shape[numbers.lhs_spec[0]]:
            return mlir.lower_fun(partial(_exchanged, *arguments), False)(ctx, lhs, rhs)
        if taps <= places and taps * features <= 2 * channels:
            return mlir.lower_fun(partial(_product_first, *arguments), False)(ctx, lhs, rhs)
    return _in_one_layout(ctx, lhs, rhs, **params)


def _shaped(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _is_plain(params: dict[str, Any]) -> bool:
    """Whether there are no strides, dilations and groups."""
    spaced = (*params["window_strides"], *params["lhs_dilation"], *params["rhs_dilation"])
    groups = params["feature_group_count"], params["batch_group_count"]
    return set(spaced) | set(groups) == {1}


def _area(shaped: jax.ShapeDtypeStruct, spec: Sequence[int]) -> int:
    return math.prod(shaped.shape[axis] for axis in spec[2:])


def _exchanged(
    numbers: lax.ConvDimensionNumbers,
    padding: Sequence[tuple[int, int]],
    dtype: Any,
    x: Array,
    kernel: Array,
) -> Array:
    """The convolution of the kernel with the image, which is that of the image read backwards."""
    image, weights, result = numbers
    sides = [
        (x.shape[i] - kernel.shape[k], pad)
        for i, k, pad in zip(image[2:], weights[2:], padding, strict=True)
    ]
    convolved = lax.conv_general_dilated(
        kernel,
        x,
        (1,) * len(sides),
        [(longer + high, longer + low) for longer, (low, high) in sides],
        dimension_numbers=lax.ConvDimensionNumbers(
            weights, image, (result[1], result[0], *result[2:])
        ),
        preferred_element_type=dtype,
    )
    return lax.rev(convolved, result[2:])


def _product_first(
    numbers: lax.ConvDimensionNumbers,
    padding: Sequence[tuple[int, int]],
    dtype: Any,
    x: Array,
    kernel: Array,
) -> Array:
    """Every pixel times the kernel [C, taps * F]; then, tap by tap, what goes to which place."""
    image, weights, result = numbers
    x = x.transpose(image[0], *image[2:], image[1])
    kernel = kernel.transpose(*weights[2:], weights[1], weights[0])
    *taps, channels, features = kernel.shape
    columns = jnp.moveaxis(kernel, -2, 0).reshape(channels, -1)

    total = jnp.promote_types(dtype, jnp.float32)  # half precision is added up in float32
    products = jnp.matmul(x, columns, preferred_element_type=total)
    around = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    products = lax.pad(products, jnp.zeros((), total), around)
    sides = [n - k + 1 for n, k in zip(products.shape[1:], taps, strict=False)]
    out = jnp.zeros((len(x), *sides, features), total)
    for i, tap in enumerate(itertools.product(*map(range, taps))):
        first = (0, *tap, i * features)
        last = (len(x), *(t + n for t, n in zip(tap, sides, strict=True)), (i + 1) * features)
        out += lax.slice(products, first, last)
    return out.astype(dtype).transpose(_inverse((result[0], *result[2:], result[1])))


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
