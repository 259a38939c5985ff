# SPDX-License-Identifier: MIT
"""The noise predictor of Stable Diffusion 1.x, 2.x and XL."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.linear import Conv3x3
from jaxgen.nn.norm import GroupNorm
from jaxgen.nn.stable_diffusion.unet_blocks import (
    Level,
    TextContext,
    UNetEncoder,
    UpBlock,
    has_attention,
    repeat,
)
from jaxgen.types import Array

UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}  # name -> has attention


class Deep(NamedTuple):
    """What changes slowly from step to step, and DeepCache takes again: Ma et al. 2023
    (arXiv:2312.00858), section 3.2 with their outermost skip."""

    features: Array  # [B, H, W, C_0] the input of the last layer of the way up
    added: Array | None = None  # what ControlNets add to its skip


class UNet2DConditionModel(UNetEncoder):
    """The network that predicts noise (or v) from a noisy latent, its timestep and a text.

    sample: [B, H, W, in_channels], timesteps: [B] or [], text: [B, T, cross_attention_dim]
    -> [B, H, W, out_channels] in `dtype`. Rombach et al. 2022 (arXiv:2112.10752); XL: Podell et
    al. 2023 (arXiv:2307.01952). Mirrors diffusers' class of this name: fields and defaults are
    those of its config.json, submodules have its names.

    `__call__` is three methods in a row. The first two do not depend on the latent, so a sampling
    loop calls `embed_time` (and `embed_added`) and `text_context` once, outside, and `denoise`
    at every step. Raises ValueError for block types and sizes of fields that do not fit.
    """

    out_channels: int = 4
    up_block_types: Sequence[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    reverse_transformer_layers_per_block: Sequence[int | Sequence[int]] | None = None

    def setup(self) -> None:
        super().setup()
        last = len(self.block_out_channels) - 1
        self.up_blocks = [
            UpBlock(level, i < last, self.dtype) for i, level in enumerate(self._levels_up())
        ]
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

    def text_context(self, text: Array) -> dict[str, TextContext]:
        """The keys and values of the text [B, T, E] for every cross-attention, for `denoise`."""
        text = text.astype(self.dtype)
        up = {f"up_blocks_{i}": block for i, block in enumerate(self.up_blocks)}
        blocks = self._blocks_down() | up
        return {name: block.text_context(text) for name, block in blocks.items()}

    def denoise(
        self,
        sample: Array,
        emb: Array,
        text_context: dict[str, TextContext],
        residuals: tuple[Array, list[Array]] | None = None,
    ) -> Array:
        """The prediction from embedded time [B, D] and `text_context`: [B, H, W, C] -> the same.

        residuals: what ControlNets add to the middle and to each skip.
        """
        x, skip = self._before_last(sample, emb, text_context, residuals)
        return self._last(x, skip, emb, text_context)

    def deep(
        self,
        sample: Array,
        emb: Array,
        text_context: dict[str, TextContext],
        residuals: tuple[Array, list[Array]] | None = None,
    ) -> Deep:
        """All of `denoise` but its last layer; see `Deep`."""
        x, _ = self._before_last(sample, emb, text_context, residuals)
        return Deep(x, None if residuals is None else residuals[1][0])

    def shallow(
        self, sample: Array, emb: Array, text_context: dict[str, TextContext], deep: Deep
    ) -> Array:
        """The prediction as in `denoise`, from deep features of this or of an earlier step."""
        skip = self.conv_in(sample.astype(self.dtype))
        return self._last(
            deep.features, skip if deep.added is None else skip + deep.added, emb, text_context
        )

    def no_deep(self, shape: tuple[int, int, int], has_residuals: bool) -> Deep:
        """Zeros in the shape of what `deep` returns for samples of this shape [B, H, W]."""
        zeros = jnp.zeros((*shape, self.block_out_channels[0]), self.dtype)
        return Deep(zeros, zeros if has_residuals else None)

    def _before_last(
        self,
        sample: Array,
        emb: Array,
        text_context: dict[str, TextContext],
        residuals: tuple[Array, list[Array]] | None,
    ) -> tuple[Array, Array]:
        """What the last layer of the way up takes: its input and its skip."""
        x, skips = self.encode(sample, emb, text_context)
        if residuals is not None:
            x = x + residuals[0]
            skips = [skip + added for skip, added in zip(skips, residuals[1], strict=True)]
        for i, block in enumerate(self.up_blocks):
            count = min(block.level.num_resnets, len(skips) - 1)
            block_skips = tuple(skips.pop() for _ in range(count))
            x = block(x, block_skips, emb, text_context[f"up_blocks_{i}"], skips[-1].shape[1:3])
        return x, skips[0]

    def _last(
        self, x: Array, skip: Array, emb: Array, text_context: dict[str, TextContext]
    ) -> Array:
        last, text = len(self.up_blocks) - 1, text_context[f"up_blocks_{len(self.up_blocks) - 1}"]
        layer = self.up_blocks[last].level.num_resnets - 1
        x = self.up_blocks[last].layer(layer, x, skip, emb, text)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))

    def attention_depths(self) -> dict[str, tuple[int, ...]]:
        """How many blocks each Transformer2DModel has, for every block by diffusers' name."""
        down, mid = self._levels_down()
        levels = {f"down_blocks.{i}": level for i, level in enumerate(down)}
        levels |= {} if mid is None else {"mid_block": mid}
        levels |= {f"up_blocks.{i}": level for i, level in enumerate(self._levels_up())}
        return {name: level.depths for name, level in levels.items()}

    def _levels_up(self) -> list[Level]:
        count = len(self.block_out_channels)
        layers = repeat(self.layers_per_block, count)
        depths = repeat(self.transformer_layers_per_block, count)
        up_depths = self.reverse_transformer_layers_per_block or depths[::-1]
        return [
            self._level(
                -1 - i,
                layers[-1 - i] + 1,
                has_attention(kind, "up_block_types", UP_BLOCKS),
                up_depths[i],
            )
            for i, kind in enumerate(repeat(self.up_block_types, count))
        ]
