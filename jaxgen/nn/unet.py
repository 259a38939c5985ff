# SPDX-License-Identifier: MIT
"""The noise predictor of Stable Diffusion 1.x, 2.x and XL."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.convolution import Conv3x3
from jaxgen.nn.embeddings import TimestepEmbedding, sinusoid
from jaxgen.nn.norm import GroupNorm
from jaxgen.nn.unet_blocks import DownBlock, Level, MidBlock, TextContext, UpBlock
from jaxgen.types import Array

DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # name -> has attention
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
MID_BLOCKS = {"UNetMidBlock2DCrossAttn": True, "UNetMidBlock2D": False}


class UNet2DConditionModel(nn.Module):
    """The network that predicts noise (or v) from a noisy latent, its timestep and a text.

    sample: [B, H, W, in_channels], timesteps: [B] or [], text: [B, T, cross_attention_dim]
    -> [B, H, W, out_channels] in `dtype`. Rombach et al. 2022 (arXiv:2112.10752); XL: Podell et
    al. 2023 (arXiv:2307.01952). Mirrors diffusers' class of this name: fields and defaults are
    those of its config.json, submodules have its names.

    `__call__` is three methods in a row. The first two do not depend on the latent, so a sampling
    loop calls `embed_time` (and `embed_added`) and `text_context` once, outside, and `denoise`
    at every step. Raises ValueError for block types and sizes of fields that do not fit.
    """

    sample_size: int | Sequence[int] | None = None  # default latent size; the network takes any
    in_channels: int = 4  # 9 in inpainting models
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: Sequence[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)
    layers_per_block: int | Sequence[int] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | Sequence[int | Sequence[int]] = 1
    reverse_transformer_layers_per_block: Sequence[int | Sequence[int]] | None = None
    attention_head_dim: int | Sequence[int] = 8  # a historic name: the number of heads
    num_attention_heads: int | Sequence[int] | None = None  # overrides it
    use_linear_projection: bool = False  # the layout of proj_in on disk; the same layer here
    addition_embed_type: str | None = None  # "text_time" in XL
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None  # guidance embedding of latent consistency models
    dtype: Any = jnp.float32

    def setup(self) -> None:
        channels = self.block_out_channels
        down, mid, up = self._levels()
        last = len(channels) - 1

        self.conv_in = Conv3x3(channels[0], self.dtype)
        self.time_embedding = TimestepEmbedding(
            4 * channels[0], self.time_cond_proj_dim, self.dtype
        )
        if self.addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(4 * channels[0], dtype=self.dtype)
        self.down_blocks = [DownBlock(level, i < last, self.dtype) for i, level in enumerate(down)]
        if mid is not None:
            self.mid_block = MidBlock(mid, self.dtype)
        self.up_blocks = [UpBlock(level, i < last, self.dtype) for i, level in enumerate(up)]
        self.conv_norm_out = GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype)
        self.conv_out = Conv3x3(self.out_channels, self.dtype)

    def __call__(
        self,
        sample: Array,
        timesteps: Array,
        text: Array,
        text_embeds: Array | None = None,
        time_ids: Array | None = None,
        timestep_cond: Array | None = None,
    ) -> Array:
        """The prediction from raw conditions; the last three as in `embed_added`, `embed_time`."""
        emb = self.embed_time(jnp.broadcast_to(timesteps, sample.shape[:1]), timestep_cond)
        if self.addition_embed_type == "text_time":
            if text_embeds is None or time_ids is None:
                raise ValueError(
                    "this UNet has addition_embed_type 'text_time' (Stable Diffusion XL); pass "
                    "text_embeds [B, P] and time_ids [B, 6] as well"
                )
            emb = emb + self.embed_added(text_embeds, time_ids)
        return self.denoise(sample, emb, self.text_context(text))

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

    def text_context(self, text: Array) -> dict[str, TextContext]:
        """The keys and values of the text [B, T, E] for every cross-attention, for `denoise`."""
        text = text.astype(self.dtype)
        return {name: block.text_context(text) for name, block in self._blocks().items()}

    def denoise(self, sample: Array, emb: Array, text_context: dict[str, TextContext]) -> Array:
        """The prediction from embedded time [B, D] and `text_context`: [B, H, W, C] -> the same."""
        x = self.conv_in(sample.astype(self.dtype))
        skips = [x]
        for i, block in enumerate(self.down_blocks):
            x, outputs = block(x, emb, text_context[f"down_blocks_{i}"])
            skips.extend(outputs)

        if self.mid_block_type is not None:
            x = self.mid_block(x, emb, text_context["mid_block"])

        for i, block in enumerate(self.up_blocks):
            block_skips = tuple(skips.pop() for _ in range(block.level.num_resnets))
            size = skips[-1].shape[1:3] if skips else None
            x = block(x, block_skips, emb, text_context[f"up_blocks_{i}"], size)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))

    def _sinusoid(self, values: Array, dim: int) -> Array:
        return sinusoid(
            values, dim, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift
        )

    def _blocks(self) -> dict[str, DownBlock | MidBlock | UpBlock]:
        blocks: dict[str, Any] = {
            f"down_blocks_{i}": block for i, block in enumerate(self.down_blocks)
        }
        if self.mid_block_type is not None:
            blocks["mid_block"] = self.mid_block
        return blocks | {f"up_blocks_{i}": block for i, block in enumerate(self.up_blocks)}

    def _levels(self) -> tuple[list[Level], Level | None, list[Level]]:
        """The levels on the way down, in the middle (or None), and on the way up."""
        count = len(self.block_out_channels)
        layers = _repeat(self.layers_per_block, count)
        heads = _repeat(self.num_attention_heads or self.attention_head_dim, count)
        depths = _repeat(self.transformer_layers_per_block, count)
        up_depths = self.reverse_transformer_layers_per_block or depths[::-1]

        def level(i: int, num_resnets: int, has_attention: bool, depth: Any) -> Level:
            depths = _repeat(depth, num_resnets) if has_attention else ()
            groups, eps = self.norm_num_groups, self.norm_eps
            return Level(self.block_out_channels[i], num_resnets, heads[i], depths, groups, eps)

        down = [
            level(i, layers[i], _has_attention(kind, "down_block_types", DOWN_BLOCKS), depths[i])
            for i, kind in enumerate(_repeat(self.down_block_types, count))
        ]
        up = [
            level(
                -1 - i,
                layers[-1 - i] + 1,
                _has_attention(kind, "up_block_types", UP_BLOCKS),
                up_depths[i],
            )
            for i, kind in enumerate(_repeat(self.up_block_types, count))
        ]
        if self.mid_block_type is None:
            return down, None, up
        attends = _has_attention(self.mid_block_type, "mid_block_type", MID_BLOCKS)
        depth = depths[-1] if isinstance(depths[-1], int) else depths[-1][0]
        mid = level(-1, 1, attends, depth)
        return down, mid, up


def _has_attention(kind: str, field: str, known: dict[str, bool]) -> bool:
    if kind not in known:
        raise ValueError(f"{field} {kind!r} is not implemented; use one of {', '.join(known)}")
    return known[kind]


def _repeat(value: Any, count: int) -> tuple[Any, ...]:
    """The field as a tuple of `count`: it may be one number for all levels, or one for each."""
    if isinstance(value, int):
        return (value,) * count
    if len(value) != count:
        raise ValueError(f"{tuple(value)} has {len(value)} entries where {count} are expected")
    return tuple(value)
