# SPDX-License-Identifier: MIT
"""Convolutional encoder and decoder between an image and a map of vectors, for the VQ-VAE."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn import blocks
from jaxgen.types import Array


class Residual(nn.Module):
    """x + f(x) with two convolutions, 3x3 and 1x1: [..., H, W, C] -> the same shape."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(nn.relu(x))
        return x + nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype)(nn.relu(h))


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
            h = nn.relu(nn.Conv(self.width, (4, 4), strides=2, dtype=self.dtype)(h))
        for _ in range(2):
            h = Residual(dtype=self.dtype)(h)
        return nn.Conv(self.features, (1, 1), dtype=self.dtype, name="head")(h).astype(jnp.float32)


class MapDecoder(nn.Module):
    """The mirror of `MapEncoder`: [..., h, w, D] -> [..., h 2^stages, w 2^stages, channels]."""

    channels: int
    width: int = 64
    stages: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype)(z.astype(self.dtype))
        for _ in range(2):
            h = Residual(dtype=self.dtype)(h)
        h = nn.relu(h)
        for _ in range(self.stages - 1):
            h = nn.relu(blocks.Upsample(self.width, dtype=self.dtype)(h))
        return blocks.Upsample(self.channels, dtype=self.dtype, name="head")(h).astype(jnp.float32)
