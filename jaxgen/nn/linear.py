# SPDX-License-Identifier: MIT
"""The linear layers of all networks: dense, convolution, table of embeddings.

Parameters, their names and their start are those of flax's layers. What differs is 16-bit training:
the gradient of a bias, or of a row of a table, is a sum over the batch and over pixels, and here it
is a sum in float32. In bfloat16, as in flax's layers, it stops growing after some hundred terms.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn import quantized
from jaxgen.types import Array

SAME = ((1, 1), (1, 1))  # torch's padding=1, spelled out: flax's "SAME" differs at stride 2

# flax's own starts of a kernel and of a table
LECUN = nn.initializers.lecun_normal()
EMBEDDING = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


def add(x: Array, shift: Array) -> Array:
    """x + shift in the dtype of x; the gradient of `shift` is summed in float32.

    x: [..., C], shift: [C], or [..., C] of as many axes, to be broadcast over axes of x.
    """
    shift = shift.reshape((1,) * (x.ndim - shift.ndim) + shift.shape)
    if x.dtype.itemsize >= 4:
        return x + shift.astype(x.dtype)
    return _half_add(x, shift)


@jax.custom_jvp
def _half_add(x: Array, shift: Array) -> Array:
    # not added in float32, which has the right gradient too: cuDNN would not fuse it any more
    return x + shift.astype(x.dtype)


@_half_add.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    x, shift = tangents
    tangent = x.astype(jnp.float32) + shift.astype(jnp.float32)
    return _half_add(*primals), tangent.astype(x.dtype)


def read_kernel(
    layer: Any, shape: tuple[int, ...], init: Any = LECUN
) -> tuple[Array, Array | None]:
    """A layer's kernel in its dtype, and the scales [O] that its product lacks: see `quantized`."""
    kernel = layer.param("kernel", init, shape)
    if not layer.has_variable("params", quantized.SCALE):
        return kernel.astype(layer.dtype), None
    scale = layer.get_variable("params", quantized.SCALE)
    return jnp.asarray(kernel, layer.dtype) * quantized.UNITS[kernel.dtype.name], scale


def rescale(y: Array, scale: Array | None) -> Array:
    """y [..., O] times the scales of its features, in float32 and back; y itself without any."""
    if scale is None:
        return y
    scale = scale.reshape((1,) * (y.ndim - 1) + scale.shape)
    return (y.astype(jnp.float32) * scale).astype(y.dtype)


class Dense(nn.Module):
    """A dense layer: [..., D] -> [..., features] in `dtype`; flax's class of this name."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = LECUN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = _dense_product(self, x)
        if not self.use_bias:
            return y
        return add(y, self.param("bias", nn.initializers.zeros, (self.features,)))


def _dense_product(layer: Dense, x: Array) -> Array:
    """What the layer multiplies: [..., D] -> [..., features], by integers where it is so stored."""
    shape = (x.shape[-1], layer.features)
    if layer.has_variable("params", quantized.PRODUCT_SCALE):
        stored = layer.param("kernel", layer.kernel_init, shape)
        scale = layer.get_variable("params", quantized.PRODUCT_SCALE)
        return quantized.product(x, stored, scale).astype(layer.dtype)
    kernel, scale = read_kernel(layer, shape, layer.kernel_init)
    contracted = (((x.ndim - 1,), (0,)), ((), ()))
    return rescale(jax.lax.dot_general(x.astype(layer.dtype), kernel, contracted), scale)


class Conv(nn.Module):
    """A convolution: [..., H, W, C] -> [..., H', W', features] in `dtype`; flax's class."""

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME"
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel, scale = read_kernel(self, shape)
        lead = x.shape[:-3]
        x = x.reshape(math.prod(lead), *x.shape[-3:]).astype(self.dtype)
        strides = (self.strides, self.strides)
        y = rescale(_convolution(x, kernel, strides, self.padding), scale)
        if self.use_bias:
            y = add(y, self.param("bias", nn.initializers.zeros, (self.features,)))
        return y.reshape(*lead, *y.shape[1:])


class Embed(nn.Module):
    """A table of embeddings: ids [...] -> [..., features] in `dtype`; flax's class of this name."""

    num_embeddings: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        table = self.param("embedding", EMBEDDING, (self.num_embeddings, self.features))
        # rows are taken first and rounded then: their gradients are added up unrounded
        return jnp.take(table, ids, axis=0).astype(self.dtype)


class Conv3x3(nn.Module):
    """A 3x3 convolution of stride 1 with zero padding: [B, H, W, C] -> [B, H, W, features].

    It is torch.nn.Conv2d(C, features, 3, padding=1).
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3, 3, x.shape[-1], self.features)
        kernel, scale = read_kernel(self, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)

        if _product_is_faster(x.shape, self.features):
            return add(rescale(_as_product(x, kernel), scale), bias)
        return add(rescale(_convolution(x, kernel, (1, 1), SAME), scale), bias)


def _product_is_faster(shape: tuple[int, ...], features: int) -> bool:
    """Whether the product is faster: on CPU, with many features and few pixels.

    There, moving weights costs more than arithmetic. Measured on 2 cores, 1280 channels: 1.3 to 2.4
    times faster at 8x8 pixels, 1.8 at 4x4. Narrow networks gain nothing, and under vmap (training)
    the batch that this sees is 1.
    """
    b, h, w, _ = shape
    return jax.default_backend() == "cpu" and b * h * w <= features and features >= 512


def _convolution(x: Array, kernel: Array, strides: tuple[int, int], padding: Any) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


def _as_product(x: Array, kernel: Array) -> Array:
    """The convolution as a product: the 3x3 neighbourhood of a pixel, a row [9 C], times kernel."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), *SAME, (0, 0)))
    shifted = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
