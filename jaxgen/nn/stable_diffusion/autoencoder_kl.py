# SPDX-License-Identifier: MIT
"""The autoencoder of latent diffusion, from images to Gaussian latents and back."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.attention import attention
from jaxgen.nn.linear import Conv3x3, Dense
from jaxgen.nn.norm import GroupNorm
from jaxgen.nn.stable_diffusion.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from jaxgen.types import Array

DOWN_BLOCK, UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"
EPSILON = 1e-6  # of every norm here; the UNet's resnets use 1e-5
AFTER = ((0, 1), (0, 1))  # the encoder's strided convolutions pad below and to the right only


class AutoencoderKL(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] <-> latents [B, H/f, W/f, 4], f = `factor`.

    Rombach et al. 2022 (arXiv:2112.10752) section 3.1. Mirrors diffusers' class of this name:
    fields and defaults are those of its config.json, submodules have its names. Latents are those
    of the network itself: scaling_factor and shift_factor belong to the sampling code.
    Raises ValueError for block types that it does not have.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Sequence[str] = (DOWN_BLOCK,)
    up_block_types: Sequence[str] = (UP_BLOCK,)
    block_out_channels: Sequence[int] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # this and the next three belong to the sampler, see above
    shift_factor: float | None = None
    latents_mean: Sequence[float] | None = None
    latents_std: Sequence[float] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """How many pixels of the picture one pixel of the latent stands for, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def setup(self) -> None:
        self._check()
        common = (self.norm_num_groups, self.mid_block_add_attention, self.dtype)
        widths, layers = tuple(self.block_out_channels), self.layers_per_block
        self.encoder = Encoder(2 * self.latent_channels, widths, layers, *common)
        self.decoder = Decoder(self.out_channels, widths, layers, *common)
        if self.use_quant_conv:  # 1x1 convolutions, hence dense layers
            self.quant_conv = Dense(2 * self.latent_channels, dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = Dense(self.latent_channels, dtype=self.dtype)

    def __call__(self, x: Array) -> Array:
        """The reconstruction of x from the posterior's mean: [B, H, W, 3] -> the same."""
        mean, _ = self.encode(x)
        return self.decode(mean)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """The mean and log-variance of q(z | x), float32: [B, H, W, 3] -> two [B, H/f, W/f, 4].

        The log-variance is clipped to [-30, 20] as in diffusers' DiagonalGaussianDistribution.
        """
        h = self.encoder(x.astype(self.dtype))
        if self.use_quant_conv:
            h = self.quant_conv(h)
        mean, logvar = jnp.split(h.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Array) -> Array:
        """The image of a latent, not clipped: [B, H/f, W/f, 4] -> [B, H, W, 3] in `dtype`."""
        z = z.astype(self.dtype)
        if self.use_post_quant_conv:
            z = self.post_quant_conv(z)
        return self.decoder(z)

    def _check(self) -> None:
        count = len(self.block_out_channels)
        for field, known in (("down_block_types", DOWN_BLOCK), ("up_block_types", UP_BLOCK)):
            if tuple(getattr(self, field)) != (known,) * count:
                raise ValueError(
                    f"{field} is {tuple(getattr(self, field))}; expected {count} times {known!r}, "
                    "one for each entry of block_out_channels"
                )


class Encoder(nn.Module):
    """diffusers' vae.Encoder: [B, H, W, 3] -> [B, H/f, W/f, channels]."""

    channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    add_attention: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        widths, groups = self.block_out_channels, self.norm_num_groups
        x = Conv3x3(widths[0], self.dtype, name="conv_in")(x)
        for i, width in enumerate(widths):
            name = f"down_blocks_{i}"
            last = i == len(widths) - 1
            x = DownEncoderBlock(
                width, self.layers_per_block, groups, not last, self.dtype, name=name
            )(x)
        x = MidBlock(widths[-1], groups, self.add_attention, self.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(groups, EPSILON, self.dtype, name="conv_norm_out")(x))
        return Conv3x3(self.channels, self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """diffusers' vae.Decoder: [B, H/f, W/f, 4] -> [B, H, W, channels]."""

    channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    add_attention: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        widths, groups = self.block_out_channels[::-1], self.norm_num_groups
        x = Conv3x3(widths[0], self.dtype, name="conv_in")(z)
        x = MidBlock(widths[0], groups, self.add_attention, self.dtype, name="mid_block")(x)
        for i, width in enumerate(widths):
            name = f"up_blocks_{i}"
            last = i == len(widths) - 1
            x = UpDecoderBlock(
                width, self.layers_per_block + 1, groups, not last, self.dtype, name=name
            )(x)
        x = nn.silu(GroupNorm(groups, EPSILON, self.dtype, name="conv_norm_out")(x))
        return Conv3x3(self.channels, self.dtype, name="conv_out")(x)


class DownEncoderBlock(nn.Module):
    """Resnets, then half the resolution: [B, H, W, C_in] -> [B, H/2, W/2, channels].

    diffusers' DownEncoderBlock2D; without `add_downsample` the resolution stays.
    """

    channels: int
    num_layers: int
    norm_num_groups: int
    add_downsample: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.num_layers):
            x = ResnetBlock2D(
                self.channels, self.norm_num_groups, EPSILON, self.dtype, name=f"resnets_{i}"
            )(x)
        if self.add_downsample:
            x = Downsample2D(AFTER, self.dtype, name="downsamplers_0")(x)
        return x


class UpDecoderBlock(nn.Module):
    """Resnets, then twice the resolution: [B, H, W, C_in] -> [B, 2H, 2W, channels].

    diffusers' UpDecoderBlock2D; without `add_upsample` the resolution stays.
    """

    channels: int
    num_layers: int
    norm_num_groups: int
    add_upsample: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.num_layers):
            x = ResnetBlock2D(
                self.channels, self.norm_num_groups, EPSILON, self.dtype, name=f"resnets_{i}"
            )(x)
        if self.add_upsample:
            x = Upsample2D(self.dtype, name="upsamplers_0")(x)
        return x


class MidBlock(nn.Module):
    """Two resnets, with one head of attention over all pixels between them: [B, H, W, C] -> same.

    diffusers' UNetMidBlock2D.
    """

    channels: int
    norm_num_groups: int
    add_attention: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        resnets = [
            ResnetBlock2D(
                self.channels, self.norm_num_groups, EPSILON, self.dtype, name=f"resnets_{i}"
            )
            for i in range(2)
        ]
        x = resnets[0](x)
        if self.add_attention:
            x = PixelAttention(self.norm_num_groups, self.dtype, name="attentions_0")(x)
        return resnets[1](x)


class PixelAttention(nn.Module):
    """Attention over all pixels after a norm, added to its input; its one head has all channels.

    [B, H, W, C] -> the same. diffusers' Attention as its autoencoder uses it.
    """

    norm_num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        tokens = GroupNorm(self.norm_num_groups, EPSILON, self.dtype, name="group_norm")(x)
        tokens = tokens.reshape(b, h * w, c)
        q, k, v = (
            Dense(c, dtype=self.dtype, name=name)(tokens)[:, :, None, :]
            for name in ("to_q", "to_k", "to_v")
        )
        out = attention(q, k, v)[:, :, 0, :]
        return x + Dense(c, dtype=self.dtype, name="to_out_0")(out).reshape(b, h, w, c)
