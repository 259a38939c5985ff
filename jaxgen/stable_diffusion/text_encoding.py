# SPDX-License-Identifier: MIT
"""What an image is conditioned on: texts through their encoders, and the sizes that XL is told.

Stable Diffusion 1 and 2 have one text encoder and use its last state, normed. XL has two and uses
the state before the last of both, not normed, side by side, and the pooled output of the second.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.nn.clip import CLIPTextModel
from jaxgen.stable_diffusion.prompts import Chunks
from jaxgen.types import AnyArray, Array, Params


class Text(NamedTuple):
    """B encoded texts, as `StableDiffusion` makes them and takes them back."""

    context: AnyArray  # [B, K * T, E], what the UNet attends to
    pooled: AnyArray | None = None  # [B, P], XL only


def encode(
    encoders: Mapping[str, CLIPTextModel],
    params: Mapping[str, Params],
    chunks: Mapping[str, Chunks],
    clip_skip: int = 0,
) -> Text:
    """The encoding of B texts; one encoder (SD 1, 2) or two (XL), keyed by their names.

    clip_skip: how many of the last layers to leave out, counted as in diffusers (0 is none).
    """
    is_xl = len(encoders) > 1
    contexts, pooled = [], None
    for name, encoder in encoders.items():
        b, k, t = chunks[name].ids.shape
        ids = jnp.asarray(chunks[name].ids).reshape(b * k, t)
        found: Any = encoder.apply(
            {"params": params[name]}, ids, skip_layers=clip_skip + is_xl, final_norm=not is_xl
        )
        contexts.append(emphasize(found.context.reshape(b, k * t, -1), chunks[name].weights))
        if is_xl:
            pooled = found.pooled.reshape(b, k, -1)[:, 0]  # of the first chunk; the last name wins
    return Text(jnp.concatenate(contexts, axis=-1), pooled)


def emphasize(context: Array, weights: AnyArray) -> Array:
    """Hidden states times their tokens' weights, then rescaled to the mean that they had.

    context: [B, K * T, E], weights: [B, K, T]. The mean is taken over all tokens and features of
    one prompt, as AUTOMATIC1111's interface does. Without emphasis nothing changes, bit for bit.
    """
    b = context.shape[0]
    states = context.astype(jnp.float32)
    weighted = states * jnp.asarray(weights).reshape(b, -1, 1)
    before, after = (x.mean(axis=(1, 2), keepdims=True) for x in (states, weighted))
    ratio = jnp.where(after == 0, 1.0, before / jnp.where(after == 0, 1.0, after))
    return (weighted * ratio).astype(context.dtype)


def blank(text: Text, rows: AnyArray) -> Text:
    """The texts with zeros in the given rows, bool [B]: XL's way to say "no negative prompt"."""
    keep = ~jnp.asarray(rows)
    context = jnp.where(keep[:, None, None], text.context, 0)
    pooled = None if text.pooled is None else jnp.where(keep[:, None], text.pooled, 0)
    return Text(context, pooled)


def pairs(negative: Text, positive: Text) -> Text:
    """Negative and positive texts along a new second axis: [B, 2, T, E] and [B, 2, P]."""
    if negative.context.shape != positive.context.shape:
        raise ValueError(
            f"the negative prompts encode to {negative.context.shape} and the prompts to "
            f"{positive.context.shape}; both must have the same batch and number of tokens"
        )
    context = jnp.stack([negative.context, positive.context], axis=1)
    if positive.pooled is None or negative.pooled is None:
        return Text(context)
    return Text(context, jnp.stack([negative.pooled, positive.pooled], axis=1))


def time_ids(
    original_size: Sequence[int], crop: Sequence[int], target_size: Sequence[int], batch_size: int
) -> np.ndarray:
    """XL's micro-conditions in pixels, float32 [B, 6]: original height and width, top and left of
    the crop, target height and width. Podell et al. 2023 (arXiv:2307.01952) section 2.2.
    """
    values: list[Any] = [*original_size, *crop, *target_size]
    if len(values) != 6:
        raise ValueError(
            "original_size, crop and target_size are two numbers each: (height, width), (top, "
            f"left), (height, width); got {original_size}, {crop}, {target_size}"
        )
    # float32, not the networks' type: bfloat16 would make 1024 of 1023
    return np.tile(np.asarray(values, np.float32), (batch_size, 1))
