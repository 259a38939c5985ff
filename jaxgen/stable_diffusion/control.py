# SPDX-License-Identifier: MIT
"""ControlNets inside the loop: what images add to the UNet's skips, weighed row by row.

Weights, images, strengths and windows are data of the compiled programs; which networks there are
is not. Zhang et al. 2023 (arXiv:2302.05543), section 3.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.nn.stable_diffusion.controlnet import ControlNetModel
from jaxgen.types import AnyArray, Array, Params

Residuals = tuple[Array, list[Array]]  # for the middle, and for each skip


class Control(NamedTuple):
    """One ControlNet's part in a run of B images."""

    params: Params
    image: AnyArray  # [B, H, W, 3] in [0, 1]
    scale: AnyArray  # float32 [N], of each row of the table; 0 outside of its window
    depths: AnyArray  # float32 [S + 1], of each skip and of the middle
    of_negative: AnyArray  # float32 []: 0 where only the positive text's half takes it


class Ready(NamedTuple):
    """What a run computes once of a ControlNet."""

    times: Array  # [N, D] embedded times of all rows
    added: Array | None  # [B * S, D] embedded sizes and pooled text of XL
    text: Any  # keys and values of the text
    hint: Array  # [B * G, h, w, C] features of the image


def begin(
    net: ControlNetModel,
    control: Control,
    times: Array,
    context: AnyArray,
    added: tuple[AnyArray, AnyArray] | None,
    groups: int,
) -> Ready:
    """Computes what no step changes: times [N], context [B * S, T, E], added as for the UNet.

    groups: the number G of texts that guide an image at a time.
    """
    variables = {"params": control.params}
    embedded: Any = net.apply(variables, times, method="embed_time")
    own_added: Any = None
    if net.addition_embed_type == "text_time" and added is not None:
        own_added = net.apply(variables, *added, method="embed_added")
    text = net.apply(variables, context, method="text_context")
    hint: Any = net.apply(variables, jnp.asarray(control.image), method="hint")
    return Ready(embedded, own_added, text, jnp.repeat(hint, groups, axis=0))


def residuals(
    nets: Sequence[ControlNetModel],
    controls: Sequence[Control],
    ready: Sequence[Ready],
    x: Array,
    i: Array,
) -> Residuals | None:
    """Sums what all ControlNets add at row i for latents x [B * G, h, w, C]; None without any."""
    parts = [
        _weighted(net, control, own, x, i)
        for net, control, own in zip(nets, controls, ready, strict=True)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts) if parts else None


def _weighted(
    net: ControlNetModel, control: Control, ready: Ready, x: Array, i: Array
) -> Residuals:
    emb = jnp.broadcast_to(ready.times[i], (len(x), ready.times.shape[-1]))
    if ready.added is not None:
        emb = emb + ready.added
    variables = {"params": control.params}
    out: Any = net.apply(variables, x, emb, ready.text, ready.hint, method="residuals")
    middle, skips = out
    depths = jnp.asarray(control.depths) * jnp.asarray(control.scale)[i]
    # of each image's rows the first is the negative text's; without guidance all are positive
    groups = len(x) // len(control.image)
    first = jnp.asarray(control.of_negative if groups > 1 else 1.0, jnp.float32)
    rows = jnp.where(jnp.arange(len(x)) % groups == 0, first, 1.0)[:, None, None, None]
    scaled = [(skip * (depths[k] * rows)).astype(skip.dtype) for k, skip in enumerate(skips)]
    return (middle * (depths[-1] * rows)).astype(middle.dtype), scaled


def num_skips(net: ControlNetModel) -> int:
    """Counts the skips that a network adds to."""
    layers, count = net.layers_per_block, len(net.block_out_channels)
    per_level = [layers] * count if isinstance(layers, int) else list(layers)
    return 1 + sum(per_level) + count - 1


def depths(count: int, rising: bool) -> np.ndarray:
    """Weighs `count` skips and the middle: by ones, or from 0.1 to 1 as guess mode does."""
    return (np.logspace(-1, 0, count + 1) if rising else np.ones(count + 1)).astype(np.float32)


def window(scale: float, start: float, end: float, first: int, last: int, rows: int) -> np.ndarray:
    """A scale for each of `rows` rows: 0 but for those of rows first to last - 1 that lie between
    the shares `start` and `end` of the run, as in diffusers."""
    result, count = np.zeros(rows, np.float32), last - first
    for k in range(count):
        if k / count >= start and (k + 1) / count <= end:
            result[first + k] = scale
    return result
