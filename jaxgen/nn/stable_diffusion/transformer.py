# SPDX-License-Identifier: MIT
"""The transformer inside the UNet: attention over pixels, attention to text, and a gated MLP."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.attention import attention
from jaxgen.nn.linear import Dense
from jaxgen.nn.norm import GroupNorm
from jaxgen.types import Array

KeysValues = tuple[Array, Array]  # each [B, S, heads, D]


class BlockContext(NamedTuple):
    """What a transformer block is told beside its pixels."""

    text: KeysValues
    # bool [B], the rows that do without self-attention; None: no row does
    perturbed: Array | None = None


class Attention(nn.Module):
    """Multi-head attention with named projections: diffusers' Attention without its options.

    x: [B, T, channels], keys and values of a context [B, S, E], or of x itself -> [B, T, channels].
    Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.2.
    """

    channels: int
    num_heads: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.to_q = Dense(self.channels, use_bias=False, dtype=self.dtype)
        self.to_k = Dense(self.channels, use_bias=False, dtype=self.dtype)
        self.to_v = Dense(self.channels, use_bias=False, dtype=self.dtype)
        self.to_out = [Dense(self.channels, dtype=self.dtype)]  # "to_out_0"

    def keys_values(self, context: Array) -> KeysValues:
        """The keys and values of a context, for `__call__`: [B, S, E] -> two [B, S, heads, D]."""
        return self._split_heads(self.to_k(context)), self._split_heads(self.to_v(context))

    def __call__(
        self,
        x: Array,
        keys_values: KeysValues | None = None,
        perturbed: Array | None = None,
    ) -> Array:
        """perturbed: bool [B], whose pixels attend to nothing but themselves, in self-attention."""
        k, v = self.keys_values(x) if keys_values is None else keys_values
        out = attention(self._split_heads(self.to_q(x)), k, v)
        if perturbed is not None:
            out = jnp.where(perturbed[:, None, None, None], v, out)
        return self.to_out[0](out.reshape(x.shape))

    def _split_heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, self.channels // self.num_heads)


class GEGLU(nn.Module):
    """A dense layer gated by the exact (erf) GELU, Shazeer 2020 (arXiv:2002.05202) eq. 6.

    [..., C] -> [..., dim]. The projection holds (hidden, gate) in this order, as in diffusers.
    """

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden, gate = jnp.split(Dense(2 * self.dim, dtype=self.dtype, name="proj")(x), 2, -1)
        # not the tanh approximation, flax's default: it shifts every block a little
        return hidden * jax.nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and a dense layer back: [..., C] -> the same.

    diffusers' class of this name, whose submodules are net_0 and net_2.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        h = GEGLU(4 * channels, self.dtype, name="net_0")(x)
        return Dense(channels, dtype=self.dtype, name="net_2")(h)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each after a norm and added to its input.

    x: [B, T, C] and its context -> [B, T, C]. diffusers' class of this name.
    """

    channels: int
    num_heads: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.norm1, self.norm2, self.norm3 = (
            nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False) for _ in range(3)
        )
        self.attn1 = Attention(self.channels, self.num_heads, dtype=self.dtype)
        self.attn2 = Attention(self.channels, self.num_heads, dtype=self.dtype)
        self.ff = FeedForward(self.dtype)

    def __call__(self, x: Array, context: BlockContext) -> Array:
        x = x + self.attn1(self.norm1(x), perturbed=context.perturbed)
        x = x + self.attn2(self.norm2(x), context.text)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """A stack of transformer blocks over pixels, added to its input: [B, H, W, C] -> the same.

    diffusers' class of this name. Its 1x1 convolutions (SD 1) and linear layers (SD 2, XL) around
    the stack are the same dense layers in this layout.
    """

    channels: int
    num_heads: int
    num_layers: int
    norm_num_groups: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.norm = GroupNorm(self.norm_num_groups, 1e-6, self.dtype)  # 1e-6, not the UNet's 1e-5
        self.proj_in = Dense(self.channels, dtype=self.dtype)
        self.transformer_blocks = [
            BasicTransformerBlock(self.channels, self.num_heads, self.dtype)
            for _ in range(self.num_layers)
        ]
        self.proj_out = Dense(self.channels, dtype=self.dtype)

    def text_context(self, text: Array) -> tuple[BlockContext, ...]:
        """The keys and values of the text [B, S, E] for each block, for `__call__`."""
        return tuple(
            BlockContext(block.attn2.keys_values(text)) for block in self.transformer_blocks
        )

    def __call__(self, x: Array, text_context: tuple[BlockContext, ...]) -> Array:
        b, h, w, c = x.shape
        tokens = self.proj_in(self.norm(x).reshape(b, h * w, c))
        for block, context in zip(self.transformer_blocks, text_context, strict=True):
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).reshape(b, h, w, c)
