# SPDX-License-Identifier: MIT
"""The tiny autoencoder of Stable Diffusion's latents, known as TAESD: one width, no norms.

It is distilled from the large one (Bohan 2023, github.com/madebyollin/taesd) and takes the
sampler's latents as they are.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.linear import SAME, Conv
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.types import Array

CLAMP = 3.0  # latents go through CLAMP tanh(z / CLAMP)


class AutoencoderTiny(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] <-> latents [B, H/f, W/f, 4] of the sampler, f = `factor`.

    Mirrors diffusers' class of this name: fields and defaults are those of its config.json,
    submodules have its names. Raises ValueError for levels of different widths.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: Sequence[int] = (64, 64, 64, 64)
    decoder_block_out_channels: Sequence[int] = (64, 64, 64, 64)
    latent_channels: int = 4
    num_encoder_blocks: Sequence[int] = (1, 3, 3, 3)
    num_decoder_blocks: Sequence[int] = (3, 3, 3, 1)
    scaling_factor: float = 1.0  # this and the next three are as in AutoencoderKL
    shift_factor: float | None = 0.0
    latents_mean: Sequence[float] | None = None
    latents_std: Sequence[float] | None = None
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """How many pixels of the picture one pixel of the latent stands for, along each side."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)

    def setup(self) -> None:
        for field in ("encoder_block_out_channels", "decoder_block_out_channels"):
            if len(set(getattr(self, field))) != 1:
                raise ValueError(
                    f"{field} is {getattr(self, field)}; expected one width throughout"
                )
        widths, blocks = self.encoder_block_out_channels, self.num_encoder_blocks
        self.encoder = EncoderTiny(self.latent_channels, widths[0], blocks, self.dtype)
        widths, blocks = self.decoder_block_out_channels, self.num_decoder_blocks
        self.decoder = DecoderTiny(self.out_channels, widths[0], blocks, self.dtype)

    def __call__(self, x: Array) -> Array:
        """The reconstruction of x: [B, H, W, 3] -> the same."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: Array) -> tuple[Array, Array]:
        """The latent, and the log-variance of one that is certain, minus infinity; float32.

        [B, H, W, 3] -> two [B, H/f, W/f, 4].
        """
        z = self.encoder(x.astype(self.dtype)).astype(jnp.float32)
        return z, jnp.full_like(z, -jnp.inf)

    def decode(self, z: Array) -> Array:
        """The image of a latent, not clipped: [B, H/f, W/f, 4] -> [B, H, W, 3] in `dtype`."""
        return self.decoder(z.astype(self.dtype))


Autoencoder = AutoencoderKL | AutoencoderTiny


class EncoderTiny(nn.Module):
    """[B, H, W, 3] in [-1, 1] -> [B, H/f, W/f, C]: every level but the first halves the image."""

    channels: int
    width: int
    num_blocks: Sequence[int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x, place = (x + 1) / 2, 0  # place: in diffusers' list of layers
        for level, count in enumerate(self.num_blocks):
            stride = 1 if level == 0 else 2
            x = _conv(self.width, f"layers_{place}", self.dtype, stride, use_bias=level == 0)(x)
            for i in range(count):
                x = BlockTiny(self.width, self.dtype, name=f"layers_{place + 1 + i}")(x)
            place += 1 + count
        return _conv(self.channels, f"layers_{place}", self.dtype)(x)


class DecoderTiny(nn.Module):
    """[B, h, w, C] -> [B, f h, f w, 3] in about [-1, 1]: every level but the last doubles it."""

    channels: int
    width: int
    num_blocks: Sequence[int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        z = CLAMP * jnp.tanh(z / CLAMP)
        x = nn.relu(_conv(self.width, "layers_0", self.dtype)(z))
        place, last = 2, len(self.num_blocks) - 1
        for level, count in enumerate(self.num_blocks):
            for i in range(count):
                x = BlockTiny(self.width, self.dtype, name=f"layers_{place + i}")(x)
            place += count
            if level == last:
                return 2 * _conv(self.channels, f"layers_{place}", self.dtype)(x) - 1
            b, h, w, c = x.shape
            x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
            x = x.reshape(b, 2 * h, 2 * w, c)
            x = _conv(self.width, f"layers_{place + 1}", self.dtype, use_bias=False)(x)
            place += 2
        raise ValueError("num_decoder_blocks is empty; give one number for each level")


class BlockTiny(nn.Module):
    """Three convolutions, added to the input: [B, H, W, C] -> the same. AutoencoderTinyBlock."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = nn.relu(_conv(self.width, "conv_0", self.dtype)(x))
        h = nn.relu(_conv(self.width, "conv_2", self.dtype)(h))
        return nn.relu(_conv(self.width, "conv_4", self.dtype)(h) + x)


def _conv(features: int, name: str, dtype: Any, stride: int = 1, use_bias: bool = True) -> Conv:
    return Conv(features, (3, 3), stride, SAME, dtype, use_bias, name=name)
