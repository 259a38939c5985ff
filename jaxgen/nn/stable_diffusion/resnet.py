# SPDX-License-Identifier: MIT
"""The convolutional blocks that the UNet and the autoencoder share."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.linear import Conv, Conv3x3, Dense, add
from jaxgen.nn.norm import GroupNorm
from jaxgen.types import Array


class ResnetBlock2D(nn.Module):
    """Norm, SiLU, convolution, twice, with time added between the two, plus a shortcut.

    x: [B, H, W, C_in], emb: [B, D] or None -> [B, H, W, channels]. diffusers' class of this name.
    """

    channels: int
    norm_num_groups: int
    norm_eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None) -> Array:
        h = self._norm_silu_conv(x, "1")
        if emb is not None:
            shift = Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))
            h = add(h, shift[:, None, None, :])
        h = self._norm_silu_conv(h, "2")

        if x.shape[-1] != self.channels:  # a 1x1 convolution is a dense layer over channels
            x = Dense(self.channels, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h

    def _norm_silu_conv(self, x: Array, number: str) -> Array:
        norm = GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype, name="norm" + number)
        return Conv3x3(self.channels, self.dtype, name="conv" + number)(nn.silu(norm(x)))


class Downsample2D(nn.Module):
    """A strided convolution that halves height and width: [B, H, W, C] -> [B, ~H/2, ~W/2, C].

    `padding` is ((1, 1), (1, 1)) in the UNet and ((0, 1), (0, 1)) in the autoencoder's encoder.
    diffusers' class of this name.
    """

    padding: tuple[tuple[int, int], tuple[int, int]]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Conv(
            x.shape[-1], (3, 3), strides=2, padding=self.padding, dtype=self.dtype, name="conv"
        )(x)


class Upsample2D(nn.Module):
    """A convolution of the image with every pixel doubled: [B, H, W, C] -> [B, 2H, 2W, C].

    `size` (height, width) crops the last row or column where the level on the way down had an odd
    side, one pixel less than twice this one. diffusers' class of this name with `upsample_size`.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, ...] | None = None) -> Array:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
        x = x.reshape(b, 2 * h, 2 * w, c)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return Conv3x3(c, self.dtype, name="conv")(x)
