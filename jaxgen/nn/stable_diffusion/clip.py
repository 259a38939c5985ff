# SPDX-License-Identifier: MIT
"""CLIP's text encoders: CLIP-L, OpenCLIP-H and OpenCLIP-bigG."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen import fields
from jaxgen.nn.attention import attention
from jaxgen.nn.linear import Dense, Embed, add
from jaxgen.types import Array

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
LEGACY_EOS = 2  # written into old configs by mistake; it means "the largest id is the end"


class TextEncoding(NamedTuple):
    """The output of a text encoder for B texts of T tokens."""

    context: Array  # [B, T, D], for cross-attention
    pooled: Array  # [B, D], the final state at the end-of-text token; [B, P] when projected
    hidden_states: tuple[Array, ...]  # layers + 1 times [B, T, D], before the final norm


class CLIPTextModel(nn.Module):
    """A causal transformer over token ids: [B, T] int32, T <= max_position_embeddings.

    Radford et al. 2021 (arXiv:2103.00020) section 2.4. Mirrors transformers' CLIPTextModel, and
    with `with_projection` its CLIPTextModelWithProjection: fields and defaults are those of its
    config.json, submodules have its names in the files. Raises ValueError for an unknown
    hidden_act and, when called, for too many tokens and for skip_layers beyond the layers.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    with_projection: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act {fields.shown(self.hidden_act)} is not implemented; use one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        self.text_model = CLIPTextTransformer(
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.max_position_embeddings,
            self.hidden_act,
            self.layer_norm_eps,
            self.dtype,
        )
        if self.with_projection:
            self.text_projection = Dense(self.projection_dim, use_bias=False, dtype=self.dtype)

    def __call__(
        self,
        input_ids: Array,
        skip_layers: int = 0,
        final_norm: bool = True,
        new_words: Array | None = None,
    ) -> TextEncoding:
        """The encoding, whose `context` is the state `skip_layers` layers before the last.

        Stable Diffusion 1 and 2 put it through the final norm, with skip_layers = clip_skip; XL
        does not, with skip_layers = clip_skip + 1. `pooled` is always from the last state, normed.
        new_words: [R, D], embeddings of the ids from vocab_size on.
        """
        hidden_states = self.text_model(input_ids, new_words)
        if not 0 <= skip_layers <= self.num_hidden_layers:
            raise ValueError(
                f"skip_layers is {skip_layers}; this text encoder has {self.num_hidden_layers} "
                f"layers, use 0 to {self.num_hidden_layers}"
            )
        context = hidden_states[-1 - skip_layers]
        if final_norm:
            context = self.text_model.final_layer_norm(context)

        last = self.text_model.final_layer_norm(hidden_states[-1])
        own = jnp.where(input_ids < self.vocab_size, input_ids, -1)  # new words are no ends
        end = end_of_text(own, self.eos_token_id)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if self.with_projection:
            pooled = self.text_projection(pooled)
        return TextEncoding(context, pooled, hidden_states)


def end_of_text(input_ids: Array, eos_token_id: int) -> Array:
    """The position of the first end-of-text token in each row: [B, T] -> [B].

    Configs with the legacy id 2 mean the largest id in the row, which goes wrong once tokens are
    added after 49407; transformers' CLIPTextModel has the same two rules.
    """
    if eos_token_id == LEGACY_EOS:
        return jnp.argmax(input_ids, axis=-1)
    return jnp.argmax(input_ids == eos_token_id, axis=-1)


class CLIPTextTransformer(nn.Module):
    """Embeddings and encoder, and the final norm, which the caller applies.

    [B, T] -> layers + 1 states [B, T, D].
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.embeddings = CLIPTextEmbeddings(
            self.vocab_size, self.hidden_size, self.max_position_embeddings, self.dtype
        )
        self.encoder = CLIPEncoder(
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.hidden_act,
            self.layer_norm_eps,
            self.dtype,
        )
        self.final_layer_norm = _layer_norm(self.layer_norm_eps, self.dtype)

    def __call__(self, input_ids: Array, new_words: Array | None = None) -> tuple[Array, ...]:
        return self.encoder(self.embeddings(input_ids, new_words))


class CLIPTextEmbeddings(nn.Module):
    """The sum of token and position embeddings: [B, T] -> [B, T, D].

    new_words: [R, D], embeddings of the ids from vocab_size on.
    """

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, input_ids: Array, new_words: Array | None = None) -> Array:
        t = input_ids.shape[-1]
        if t > self.max_position_embeddings:
            raise ValueError(
                f"{t} tokens are too many for this text encoder, which takes "
                f"{self.max_position_embeddings}; encode longer prompts in chunks"
            )
        token = Embed(self.vocab_size, self.hidden_size, dtype=self.dtype, name="token_embedding")
        position = Embed(
            self.max_position_embeddings,
            self.hidden_size,
            dtype=self.dtype,
            name="position_embedding",
        )
        if new_words is None or len(new_words) == 0:
            embedded = token(input_ids)
        else:
            new = input_ids - self.vocab_size
            rows = jnp.asarray(new_words, self.dtype)[jnp.maximum(new, 0)]
            known = token(jnp.minimum(input_ids, self.vocab_size - 1))
            embedded = jnp.where(new[..., None] < 0, known, rows)
        return add(embedded, position(jnp.arange(t))[None])


class CLIPEncoder(nn.Module):
    """All layers: [B, T, D] -> the input and every layer's output, each [B, T, D]."""

    intermediate_size: int
    num_layers: int
    num_heads: int
    hidden_act: str
    layer_norm_eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        states = [x]
        for i in range(self.num_layers):
            layer = CLIPEncoderLayer(
                self.intermediate_size,
                self.num_heads,
                self.hidden_act,
                self.layer_norm_eps,
                self.dtype,
                name=f"layers_{i}",
            )
            states.append(layer(states[-1]))
        return tuple(states)


class CLIPEncoderLayer(nn.Module):
    """Causal self-attention and MLP, each after a norm and added: [B, T, D] -> the same."""

    intermediate_size: int
    num_heads: int
    hidden_act: str
    layer_norm_eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = _layer_norm(self.layer_norm_eps, self.dtype, "layer_norm1")(x)
        x = x + CLIPAttention(self.num_heads, self.dtype, name="self_attn")(h)
        h = _layer_norm(self.layer_norm_eps, self.dtype, "layer_norm2")(x)
        return x + CLIPMLP(self.intermediate_size, self.hidden_act, self.dtype, name="mlp")(h)


class CLIPAttention(nn.Module):
    """Causal multi-head self-attention with biases: [B, T, D] -> the same."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, t, d = x.shape
        q, k, v = (
            Dense(d, dtype=self.dtype, name=name)(x).reshape(b, t, self.num_heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = attention(q, k, v, causal=True).reshape(b, t, d)
        return Dense(d, dtype=self.dtype, name="out_proj")(out)


class CLIPMLP(nn.Module):
    """Two dense layers with `hidden_act` between them: [B, T, D] -> the same."""

    intermediate_size: int
    hidden_act: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = Dense(self.intermediate_size, dtype=self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(ACTIVATIONS[self.hidden_act](h))


def _layer_norm(epsilon: float, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)
