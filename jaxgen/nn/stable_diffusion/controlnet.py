# SPDX-License-Identifier: MIT
"""ControlNet: a copy of the UNet's encoder that looks at an image as well."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.linear import SAME, Conv, Conv3x3, Dense
from jaxgen.nn.stable_diffusion.unet_blocks import TextContext, UNetEncoder
from jaxgen.types import Array


class ControlNetModel(UNetEncoder):
    """What an image adds to the UNet's middle and to each of its skips.

    sample [B, H, W, in_channels], embedded time, text and `hint` -> the residuals of `UNet2D-
    ConditionModel.denoise`. Zhang et al. 2023 (arXiv:2302.05543) section 3; mirrors diffusers'
    class of this name: fields are those of its config.json, submodules have its names.

    `hint` depends on the image alone, so a sampling loop calls it once, outside.
    """

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"  # or "bgr"
    global_pool_conditions: bool = False  # residuals are averaged over the picture

    def setup(self) -> None:
        super().setup()
        down, _ = self._levels_down()
        self.controlnet_cond_embedding = HintEmbedding(
            self.block_out_channels[0], self.conditioning_embedding_out_channels, self.dtype
        )
        # of conv_in, of every resnet, and of the downsampler after every level but the last
        widths = [self.block_out_channels[0]]
        for i, level in enumerate(down):
            widths += [level.channels] * (level.num_resnets + (i < len(down) - 1))
        self.controlnet_down_blocks = [_conv1x1(width, self.dtype) for width in widths]
        self.controlnet_mid_block = _conv1x1(self.block_out_channels[-1], self.dtype)

    def __call__(
        self,
        sample: Array,
        timesteps: Array,
        text: Array,
        image: Array,
        text_embeds: Array | None = None,
        time_ids: Array | None = None,
    ) -> tuple[Array, list[Array]]:
        """The residuals from raw conditions; image [B, 8 H, 8 W, 3] in [0, 1]."""
        emb = self.embed_time(jnp.broadcast_to(timesteps, sample.shape[:1]))
        if text_embeds is not None and time_ids is not None:
            emb = emb + self.embed_added(text_embeds, time_ids)
        return self.residuals(sample, emb, self.text_context(text), self.hint(image))

    def text_context(self, text: Array) -> dict[str, TextContext]:
        """The keys and values of the text [B, T, E] for every cross-attention."""
        text = text.astype(self.dtype)
        return {name: block.text_context(text) for name, block in self._blocks_down().items()}

    def hint(self, image: Array) -> Array:
        """The features [B, H, W, C_0] of images [B, f H, f W, 3] in [0, 1], not [-1, 1]."""
        if self.controlnet_conditioning_channel_order == "bgr":
            image = image[..., ::-1]
        return self.controlnet_cond_embedding(image.astype(self.dtype))

    def residuals(
        self, sample: Array, emb: Array, text_context: dict[str, TextContext], hint: Array
    ) -> tuple[Array, list[Array]]:
        """What is added to the middle, and to each skip, from embedded conditions."""
        x, skips = self.encode(sample, emb, text_context, hint)
        middle = self.controlnet_mid_block(x)
        added = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        if self.global_pool_conditions:
            middle, *added = (r.mean(axis=(1, 2), keepdims=True) for r in (middle, *added))
        return middle, added


class HintEmbedding(nn.Module):
    """diffusers' ControlNetConditioningEmbedding: [B, f H, f W, 3] -> [B, H, W, channels]."""

    channels: int
    widths: Sequence[int]
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv_in = Conv3x3(self.widths[0], self.dtype)
        blocks = []
        for narrow, wide in zip(self.widths[:-1], self.widths[1:], strict=True):
            halved = Conv(wide, (3, 3), strides=2, padding=SAME, dtype=self.dtype)
            blocks += [Conv3x3(narrow, self.dtype), halved]
        self.blocks = blocks
        self.conv_out = Conv3x3(self.channels, self.dtype)

    def __call__(self, image: Array) -> Array:
        x = nn.silu(self.conv_in(image))
        for block in self.blocks:
            x = nn.silu(block(x))
        return self.conv_out(x)


def _conv1x1(features: int, dtype: Any) -> Dense:
    return Dense(features, dtype=dtype)
