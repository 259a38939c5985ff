# SPDX-License-Identifier: MIT
"""The blocks of the UNet's levels: down, middle and up, each with attention or without."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.convolution import SAME
from jaxgen.nn.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from jaxgen.nn.transformer import Transformer2DModel
from jaxgen.types import Array

TextContext = tuple[Any, ...]  # one entry for each Transformer2DModel of a block


class Level(NamedTuple):
    """The numbers that the blocks of one resolution share."""

    channels: int
    num_resnets: int
    num_heads: int
    depths: tuple[int, ...]  # transformer blocks in each Transformer2DModel; () without attention
    norm_num_groups: int
    norm_eps: float

    def resnets(self, dtype: Any, extra: int = 0) -> list[ResnetBlock2D]:
        """The level's resnets, and `extra` more."""
        return [
            ResnetBlock2D(self.channels, self.norm_num_groups, self.norm_eps, dtype)
            for _ in range(self.num_resnets + extra)
        ]

    def transformers(self, dtype: Any) -> list[Transformer2DModel]:
        """The level's transformers, one for each entry of `depths`."""
        return [
            Transformer2DModel(self.channels, self.num_heads, depth, self.norm_num_groups, dtype)
            for depth in self.depths
        ]


class DownBlock(nn.Module):
    """diffusers' CrossAttnDownBlock2D, or DownBlock2D where the level has no depths.

    x: [B, H, W, C_in] -> the last output and the tuple of all: one [B, H, W, C] for each resnet,
    then [B, H/2, W/2, C] if `add_downsample`.
    """

    level: Level
    add_downsample: bool
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.resnets = self.level.resnets(self.dtype)
        self.attentions = self.level.transformers(self.dtype)
        self.downsamplers = [Downsample2D(SAME, self.dtype)] if self.add_downsample else []

    def text_context(self, text: Array) -> TextContext:
        return tuple(layer.text_context(text) for layer in self.attentions)

    def __call__(
        self, x: Array, emb: Array, text_context: TextContext
    ) -> tuple[Array, tuple[Array, ...]]:
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions:
                x = self.attentions[i](x, text_context[i])
            outputs.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            outputs.append(x)
        return x, tuple(outputs)


class MidBlock(nn.Module):
    """diffusers' UNetMidBlock2DCrossAttn, or without depths its UNetMidBlock2D of one resnet.

    x: [B, H, W, C] -> the same.
    """

    level: Level
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.attentions = self.level.transformers(self.dtype)
        self.resnets = self.level.resnets(self.dtype, extra=len(self.attentions))

    def text_context(self, text: Array) -> TextContext:
        return tuple(layer.text_context(text) for layer in self.attentions)

    def __call__(self, x: Array, emb: Array, text_context: TextContext) -> Array:
        x = self.resnets[0](x, emb)
        for attend, resnet, text in zip(
            self.attentions, self.resnets[1:], text_context, strict=True
        ):
            x = resnet(attend(x, text), emb)
        return x


class UpBlock(nn.Module):
    """diffusers' CrossAttnUpBlock2D, or UpBlock2D where the level has no depths.

    x: [B, H, W, C_in] and one skip [B, H, W, C_i] for each resnet, those of the way down in reverse
    order -> [B, *size, C], `size` being that of the next level's skips; [B, H, W, C] at the last.
    """

    level: Level
    add_upsample: bool
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.resnets = self.level.resnets(self.dtype)
        self.attentions = self.level.transformers(self.dtype)
        self.upsamplers = [Upsample2D(self.dtype)] if self.add_upsample else []

    def text_context(self, text: Array) -> TextContext:
        return tuple(layer.text_context(text) for layer in self.attentions)

    def __call__(
        self,
        x: Array,
        skips: tuple[Array, ...],
        emb: Array,
        text_context: TextContext,
        size: tuple[int, ...] | None,
    ) -> Array:
        for i, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            x = resnet(jnp.concatenate([x, skip], axis=-1), emb)
            if self.attentions:
                x = self.attentions[i](x, text_context[i])
        for upsample in self.upsamplers:
            x = upsample(x, size)
        return x
