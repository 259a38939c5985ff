# SPDX-License-Identifier: MIT
"""The blocks of the UNet's levels, and of them the half that looks at the noisy latent.

ControlNets are copies of that half, so it is a class of its own: `unet.UNet2DConditionModel` adds
the way up, `controlnet.ControlNetModel` the image that controls.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxgen import fields
from jaxgen.nn.embeddings import TimestepEmbedding, sinusoid
from jaxgen.nn.linear import SAME, Conv3x3
from jaxgen.nn.stable_diffusion.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from jaxgen.nn.stable_diffusion.transformer import Transformer2DModel
from jaxgen.types import Array

DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # name -> has attention
MID_BLOCKS = {"UNetMidBlock2DCrossAttn": True, "UNetMidBlock2D": False}

# for each Transformer2DModel of a block, the `transformer.BlockContext` of each of its blocks
TextContext = tuple[Any, ...]


class Level(NamedTuple):
    """The numbers that the blocks of one resolution share."""

    channels: int
    num_resnets: int
    num_heads: int
    depths: tuple[int, ...]  # transformer blocks in each Transformer2DModel; () without attention
    norm_num_groups: int
    norm_eps: float
    remat: bool = False  # gradients compute what is inside each part once more; see `nn.remat`

    def resnets(self, dtype: Any, extra: int = 0) -> list[ResnetBlock2D]:
        """The level's resnets, and `extra` more."""
        resnet = nn.remat(ResnetBlock2D) if self.remat else ResnetBlock2D
        return [
            resnet(self.channels, self.norm_num_groups, self.norm_eps, dtype)
            for _ in range(self.num_resnets + extra)
        ]

    def transformers(self, dtype: Any) -> list[Transformer2DModel]:
        """The level's transformers, one for each entry of `depths`."""
        transformer = nn.remat(Transformer2DModel) if self.remat else Transformer2DModel
        return [
            transformer(self.channels, self.num_heads, depth, self.norm_num_groups, dtype)
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
    With fewer skips only the first resnets are run.
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
        for i, skip in enumerate(skips):
            x = self.layer(i, x, skip, emb, text_context)
        for upsample in self.upsamplers:
            x = upsample(x, size)
        return x

    def layer(self, i: int, x: Array, skip: Array, emb: Array, text_context: TextContext) -> Array:
        """Resnet i and its attention: [B, H, W, C_in] -> [B, H, W, C]."""
        x = self.resnets[i](jnp.concatenate([x, skip], axis=-1), emb)
        return self.attentions[i](x, text_context[i]) if self.attentions else x


class UNetEncoder(nn.Module):
    """Time, text and latent to features of every resolution; see the classes that extend it.

    Fields and defaults are those of diffusers' config.json, submodules have its names.
    """

    sample_size: int | Sequence[int] | None = None  # default latent size; the network takes any
    in_channels: int = 4  # 9 in inpainting models
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)
    layers_per_block: int | Sequence[int] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | Sequence[int | Sequence[int]] = 1
    attention_head_dim: int | Sequence[int] = 8  # a historic name: the number of heads
    num_attention_heads: int | Sequence[int] | None = None  # overrides it
    use_linear_projection: bool = False  # the layout of proj_in on disk; the same layer here
    addition_embed_type: str | None = None  # "text_time" in XL
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None  # guidance embedding of latent consistency models
    dtype: Any = jnp.float32
    remat: bool = False  # in training: less memory for activations, a third more arithmetic

    def setup(self) -> None:
        channels, last = self.block_out_channels, len(self.block_out_channels) - 1
        self.conv_in = Conv3x3(channels[0], self.dtype)
        self.time_embedding = TimestepEmbedding(
            4 * channels[0], self.time_cond_proj_dim, self.dtype
        )
        if self.addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(4 * channels[0], dtype=self.dtype)
        down, mid = self._levels_down()
        self.down_blocks = [DownBlock(level, i < last, self.dtype) for i, level in enumerate(down)]
        if mid is not None:
            self.mid_block = MidBlock(mid, self.dtype)

    def embed_time(self, timesteps: Array, timestep_cond: Array | None = None) -> Array:
        """The embedding of timesteps, integer or float: [N] -> [N, D]; one call does all steps.

        timestep_cond: [N, time_cond_proj_dim], only for UNets that have this field.
        """
        return self.time_embedding(
            self._sinusoid(timesteps, self.block_out_channels[0]), timestep_cond
        )

    def embed_added(self, text_embeds: Array, time_ids: Array) -> Array:
        """The embedding [B, D] of XL's pooled text [B, P] and sizes [B, 6], to add to that of time.

        time_ids: original height and width, crop top and left, target height and width in pixels;
        integers or float32, since bfloat16 would round them (1023 becomes 1024).
        """
        if self.addition_time_embed_dim is None:
            raise ValueError(
                "this UNet's addition_embed_type needs addition_time_embed_dim, which is None; "
                "it is 256 in Stable Diffusion XL"
            )
        sizes = self._sinusoid(time_ids, self.addition_time_embed_dim)  # float32 [B, 6, 256]
        sizes = sizes.reshape(sizes.shape[0], -1).astype(self.dtype)
        return self.add_embedding(jnp.concatenate([text_embeds.astype(self.dtype), sizes], -1))

    def encode(
        self,
        sample: Array,
        emb: Array,
        text_context: dict[str, TextContext],
        hint: Array | None = None,
    ) -> tuple[Array, list[Array]]:
        """The features of the middle [B, h, w, C], and all skips on the way down.

        emb: the embedded time [B, D]; hint: features [B, H, W, C_0] to add to conv_in's.
        """
        x = self.conv_in(sample.astype(self.dtype))
        if hint is not None:
            x = x + hint.astype(self.dtype)
        skips = [x]
        for i, block in enumerate(self.down_blocks):
            x, outputs = block(x, emb, text_context[f"down_blocks_{i}"])
            skips.extend(outputs)
        if self.mid_block_type is not None:
            x = self.mid_block(x, emb, text_context["mid_block"])
        return x, skips

    def _sinusoid(self, values: Array, dim: int) -> Array:
        return sinusoid(
            values, dim, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift
        )

    def _blocks_down(self) -> dict[str, DownBlock | MidBlock]:
        blocks: dict[str, Any] = {
            f"down_blocks_{i}": block for i, block in enumerate(self.down_blocks)
        }
        return blocks if self.mid_block_type is None else blocks | {"mid_block": self.mid_block}

    def _level(self, i: int, num_resnets: int, has_attention: bool, depth: Any) -> Level:
        """The numbers of level i; depth: of its transformers, one number or one a layer."""
        heads = repeat(
            self.num_attention_heads or self.attention_head_dim, len(self.block_out_channels)
        )
        depths = repeat(depth, num_resnets) if has_attention else ()
        groups, eps = self.norm_num_groups, self.norm_eps
        channels = self.block_out_channels[i]
        return Level(channels, num_resnets, heads[i], depths, groups, eps, self.remat)

    def _levels_down(self) -> tuple[list[Level], Level | None]:
        """The levels on the way down and in the middle, or None without one."""
        count = len(self.block_out_channels)
        layers = repeat(self.layers_per_block, count)
        depths = repeat(self.transformer_layers_per_block, count)
        kinds = repeat(self.down_block_types, count)
        down = [
            self._level(
                i, layers[i], has_attention(kind, "down_block_types", DOWN_BLOCKS), depths[i]
            )
            for i, kind in enumerate(kinds)
        ]
        if self.mid_block_type is None:
            return down, None
        attends = has_attention(self.mid_block_type, "mid_block_type", MID_BLOCKS)
        depth = depths[-1] if isinstance(depths[-1], int) else depths[-1][0]
        return down, self._level(-1, 1, attends, depth)


def has_attention(kind: str, field: str, known: dict[str, bool]) -> bool:
    """Tells whether a kind of block attends to the text; raises ValueError for an unknown one."""
    if kind not in known:
        raise ValueError(
            f"{field} {fields.shown(kind)} is not implemented; use one of {', '.join(known)}"
        )
    return known[kind]


def repeat(value: Any, count: int) -> tuple[Any, ...]:
    """The field as a tuple of `count`: it may be one number for all levels, or one for each."""
    if isinstance(value, int):
        return (value,) * count
    if len(value) != count:
        raise ValueError(f"{tuple(value)} has {len(value)} entries where {count} are expected")
    return tuple(value)
