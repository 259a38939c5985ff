# SPDX-License-Identifier: MIT
"""Encoders and decoders of autoencoder, VAE and VQ-VAE: dense, convolutional, between layers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen import fields
from jaxgen.nn import blocks
from jaxgen.nn.linear import Conv, Dense
from jaxgen.nn.norm import Norm
from jaxgen.types import Array

GLOROT = nn.initializers.xavier_uniform()


def with_label(h: Array, label: Array | None, num_classes: int) -> Array:
    """The features h [..., D] with the one-hot label appended: [..., D + num_classes].

    num_classes = 0 is the unconditional network, for which h stays as it is.
    Raises ValueError when a conditional network gets no label.
    """
    if num_classes == 0:
        return h
    if label is None:
        raise ValueError(f"a network conditioned on {num_classes} classes needs a label")
    one_hot = jax.nn.one_hot(label, num_classes, dtype=h.dtype)
    return jnp.concatenate([h, jnp.broadcast_to(one_hot, (*h.shape[:-1], num_classes))], axis=-1)


class DenseEncoder(nn.Module):
    """The fully connected encoder: [..., H, W, C] -> [..., outputs].

    `outputs` is the latent size for an autoencoder and twice that (mean, log-variance) for a VAE.
    Kingma & Welling 2014 (arXiv:1312.6114), appendix C.2; there with one hidden layer of 500.
    """

    outputs: int
    hidden: Sequence[int] = (500,)
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        h = x.reshape(*x.shape[:-3], -1).astype(self.dtype)
        h = with_label(h, label, self.num_classes)
        for features in self.hidden:
            h = nn.relu(Dense(features, dtype=self.dtype)(h))
        return Dense(self.outputs, dtype=self.dtype, name="head")(h).astype(jnp.float32)


class DenseDecoder(nn.Module):
    """The mirror of `DenseEncoder`: z [..., D] -> [..., H, W, C], unbounded (means or logits).

    `hidden` is in the encoder's order; the decoder goes through it backwards.
    """

    image_shape: tuple[int, int, int]
    hidden: Sequence[int] = (500,)
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        height, width, channels = self.image_shape
        h = with_label(z.astype(self.dtype), label, self.num_classes)
        for features in reversed(self.hidden):
            h = nn.relu(Dense(features, dtype=self.dtype)(h))
        x = Dense(height * width * channels, dtype=self.dtype, name="head")(h)
        return x.reshape(*z.shape[:-1], *self.image_shape).astype(jnp.float32)


class ConvEncoder(nn.Module):
    """The convolutional encoder: [..., H, W, C] -> [..., outputs].

    Every stage is a 3x3 convolution with stride 2; the first has `width` features, each next one
    twice as many; `blocks.num_stages` gives the number of stages. `hidden` is the width of the
    dense layer after them. Raises ValueError for images that cannot be halved.
    """

    outputs: int
    width: int = 32
    hidden: int = 256
    norm: str = "group"
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        h = x.astype(self.dtype)
        for stage in range(blocks.num_stages(*x.shape[-3:-1])):
            h = Conv(self.width * 2**stage, (3, 3), strides=2, dtype=self.dtype)(h)
            h = nn.silu(Norm(self.norm, dtype=self.dtype)(h))
        h = with_label(h.reshape(*x.shape[:-3], -1), label, self.num_classes)
        h = nn.silu(Dense(self.hidden, dtype=self.dtype)(h))
        return Dense(self.outputs, dtype=self.dtype, name="head")(h).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: z [..., D] -> [..., H, W, C], unbounded (means or logits)."""

    image_shape: tuple[int, int, int]
    width: int = 32
    hidden: int = 256
    norm: str = "group"
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        height, width, channels = self.image_shape
        stages = blocks.num_stages(height, width)
        base = (height // 2**stages, width // 2**stages, self.width * 2 ** (stages - 1))

        h = with_label(z.astype(self.dtype), label, self.num_classes)
        h = nn.silu(Dense(self.hidden, dtype=self.dtype)(h))
        h = nn.silu(Dense(base[0] * base[1] * base[2], dtype=self.dtype)(h))
        h = h.reshape(*z.shape[:-1], *base)
        for stage in reversed(range(1, stages)):
            h = blocks.Upsample(self.width * 2 ** (stage - 1), dtype=self.dtype)(h)
            h = nn.silu(Norm(self.norm, dtype=self.dtype)(h))
        return blocks.Upsample(channels, dtype=self.dtype, name="head")(h).astype(jnp.float32)


def encoder_and_decoder(
    kind: str,
    outputs: int,
    image_shape: tuple[int, int, int],
    *,
    hidden: Sequence[int] = (500,),
    width: int = 32,
    norm: str = "none",
    num_classes: int = 0,
    dtype: Any = jnp.float32,
) -> tuple[nn.Module, nn.Module]:
    """The encoder and its mirror, "dense" (with `hidden`) or "conv" (with `width` and `norm`).

    Raises ValueError for another kind.
    """
    common = {"num_classes": num_classes, "dtype": dtype}
    if kind == "dense":
        return (
            DenseEncoder(outputs, hidden, **common),
            DenseDecoder(image_shape, hidden, **common),
        )
    if kind == "conv":
        return (
            ConvEncoder(outputs, width, norm=norm, **common),
            ConvDecoder(image_shape, width, norm=norm, **common),
        )
    raise ValueError(f"unknown network {fields.shown(kind)}; use dense or conv")


class GaussianLayer(nn.Module):
    """h [..., D_in] -> the mean and the log-variance of a Gaussian, concatenated: [..., 2 D].

    `hidden` layers of tanh, then a linear head for each of mean and log standard deviation, as in
    Burda et al. 2016 (arXiv:1509.00519), section 5 and appendix C.
    """

    features: int
    hidden: Sequence[int] = (100, 100)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array) -> Array:
        h = h.astype(self.dtype)
        for features in self.hidden:
            h = nn.tanh(Dense(features, dtype=self.dtype, kernel_init=GLOROT)(h))
        mean, log_std = (
            Dense(self.features, dtype=self.dtype, kernel_init=GLOROT, name=name)(h)
            for name in ("mean", "log_std")
        )
        return jnp.concatenate([mean, 2 * log_std], axis=-1).astype(jnp.float32)


class LogitLayer(nn.Module):
    """z [..., D] -> the logits of pixels [..., H, W, C], by layers as in `GaussianLayer`."""

    image_shape: tuple[int, int, int]
    hidden: Sequence[int] = (200, 200)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.image_shape
        h = z.astype(self.dtype)
        for features in self.hidden:
            h = nn.tanh(Dense(features, dtype=self.dtype, kernel_init=GLOROT)(h))
        size = height * width * channels
        x = Dense(size, dtype=self.dtype, kernel_init=GLOROT, name="head")(h)
        return x.reshape(*z.shape[:-1], *self.image_shape).astype(jnp.float32)


class Residual(nn.Module):
    """x + f(x) with two convolutions, 3x3 and 1x1: [..., H, W, C] -> the same shape."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = Conv(x.shape[-1], (3, 3), dtype=self.dtype)(nn.relu(x))
        return x + Conv(x.shape[-1], (1, 1), dtype=self.dtype)(nn.relu(h))


class MapEncoder(nn.Module):
    """An image as a map of vectors: [..., H, W, C] -> [..., H / 2^stages, W / 2^stages, features].

    4x4 convolutions with stride 2, then two residual blocks, as in van den Oord et al. 2017
    (arXiv:1711.00937), section 4.1. Raises ValueError for images that cannot be halved so often.
    """

    features: int
    width: int = 64
    stages: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        height, width = x.shape[-3:-1]
        side = 2**self.stages
        if height % side or width % side:
            raise ValueError(
                f"{self.stages} stages halve the image; {height}x{width} is no multiple of {side}: "
                f"use --stages or --image-size"
            )
        h = x.astype(self.dtype)
        for _ in range(self.stages):
            h = nn.relu(Conv(self.width, (4, 4), strides=2, dtype=self.dtype)(h))
        for _ in range(2):
            h = Residual(dtype=self.dtype)(h)
        return Conv(self.features, (1, 1), dtype=self.dtype, name="head")(h).astype(jnp.float32)


class MapDecoder(nn.Module):
    """The mirror of `MapEncoder`: [..., h, w, D] -> [..., h 2^stages, w 2^stages, channels]."""

    channels: int
    width: int = 64
    stages: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        h = Conv(self.width, (3, 3), dtype=self.dtype)(z.astype(self.dtype))
        for _ in range(2):
            h = Residual(dtype=self.dtype)(h)
        h = nn.relu(h)
        for _ in range(self.stages - 1):
            h = nn.relu(blocks.Upsample(self.width, dtype=self.dtype)(h))
        return blocks.Upsample(self.channels, dtype=self.dtype, name="head")(h).astype(jnp.float32)
