# SPDX-License-Identifier: MIT
"""The text encoders turn token ids into what the UNet attends to.

Stable Diffusion 1 and 2 have one text encoder and use its last state, normed. XL has two and uses
the state before the last of both, not normed, side by side, and the pooled output of the second.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen import fields
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.texts.prompts import Chunks
from jaxgen.types import AnyArray, Array, Params

POOLED = "text_encoder_2"  # the encoder whose pooled output XL's UNet takes


class Text(NamedTuple):
    """Holds B encoded texts, as `StableDiffusion.embed` returns them and its call takes them."""

    context: AnyArray  # [B, K * T, E], what the UNet attends to
    pooled: AnyArray | None = None  # [B, P], XL only


def encode(
    networks: Networks,
    params: Mapping[str, Params],
    chunks: Mapping[str, Chunks],
    new_words: Mapping[str, Array] | None = None,
    clip_skip: int = 0,
) -> Text:
    """Encodes B texts with all text encoders; params, chunks and new words are given by encoder.

    new_words: [R, D], embeddings of ids beyond the encoder's own.
    clip_skip: how many of the last layers to leave out, counted as in diffusers (0 is none).
    """
    contexts, pooled, is_xl = [], None, networks.is_xl
    for name, encoder in networks.encoders.items():
        b, k, t = chunks[name].ids.shape
        ids = jnp.asarray(chunks[name].ids).reshape(b * k, t)
        encoding: Any = encoder.apply(
            {"params": params[name]},
            ids,
            skip_layers=clip_skip + is_xl,
            final_norm=not is_xl,
            new_words=(new_words or {}).get(name),
        )
        contexts.append(emphasize(encoding.context.reshape(b, k * t, -1), chunks[name].weights))
        if name == POOLED:
            pooled = encoding.pooled.reshape(b, k, -1)[:, 0]  # of the first chunk
    return Text(jnp.concatenate(contexts, axis=-1), pooled)


def check_clip_skip(networks: Networks, clip_skip: Any) -> None:
    """Raises ValueError unless so many layers can be left out of the text encoders."""
    layers = min(encoder.num_hidden_layers for encoder in networks.encoders.values())
    most = layers - networks.is_xl
    whole = isinstance(clip_skip, int) and not isinstance(clip_skip, bool)
    if not whole or not 0 <= clip_skip <= most:
        raise ValueError(
            f"clip_skip is {fields.shown(clip_skip)}; use 0 (no layer left out) to {most}"
        )


def check_embeds(name: str, text: Text | None, networks: Networks) -> None:
    """Raises ValueError unless encoded texts of the caller are of this model's kind."""
    if text is None:
        return
    if not isinstance(text, Text):
        raise ValueError(f"{name} is a {type(text).__name__}; pass what `embed` returns")
    width = networks.unet.cross_attention_dim
    shape = np.shape(text.context)
    if len(shape) != 3 or shape[-1] != width or 0 in shape:
        raise ValueError(f"{name} has context of shape {shape}; expected [B, T, {width}]")
    if networks.is_xl != (text.pooled is not None):
        advice = "needs pooled as well" if networks.is_xl else "takes no pooled"
        raise ValueError(f"{name}: this model {advice}; pass what `embed` returns")
    if text.pooled is not None and np.shape(text.pooled)[:-1] != shape[:1]:
        raise ValueError(f"{name} has pooled of shape {np.shape(text.pooled)}; expected [B, P]")


def emphasize(context: Array, weights: AnyArray) -> Array:
    """Multiplies hidden states by their tokens' weights, then restores the mean that they had.

    context: [B, K * T, E], weights: [B, K, T]. The mean is taken over all tokens and features of
    one prompt, as AUTOMATIC1111's interface does. Without emphasis nothing changes, bit for bit.
    """
    b = context.shape[0]
    states = context.astype(jnp.float32)
    weighted = states * jnp.asarray(weights).reshape(b, -1, 1)
    before, after = (x.mean(axis=(1, 2), keepdims=True) for x in (states, weighted))
    ratio = jnp.where(after == 0, 1.0, before / jnp.where(after == 0, 1.0, after))
    return (weighted * ratio).astype(context.dtype)


def stack(texts: Sequence[Text], blank: AnyArray) -> Text:
    """Stacks the sets of B images along a new second axis: S texts give [B, S, T, E] and [B, S, P].

    A text becomes zeros where blank, bool [B, S], is true: XL's way to say "no negative prompt".
    """
    shapes = {text.context.shape for text in texts}
    if len(shapes) > 1:
        raise ValueError(
            f"the negative prompts encode to {texts[0].context.shape} and the prompts to "
            f"{texts[-1].context.shape}; both must have the same batch and number of tokens"
        )
    keep = ~jnp.asarray(blank)
    context = jnp.stack([text.context for text in texts], axis=1)
    context = jnp.where(keep[:, :, None, None], context, 0)
    pooled = [text.pooled for text in texts if text.pooled is not None]
    if len(pooled) < len(texts):
        return Text(context)
    return Text(context, jnp.where(keep[:, :, None], jnp.stack(pooled, axis=1), 0))
