# SPDX-License-Identifier: MIT
"""Adapters beside the weights, chosen by each image of a batch: y = x W + sum_k s_k (x A_k) B_k.

All factors of a layer lie side by side, A [I, R] and B [R, O], where R has `width` columns for each
adapter; an image's strengths are a row [R]. Factors, strengths and which image takes which adapter
are data: other files compile nothing anew while their number, their ranks up to the next multiple
of WIDTH, and the groups of layers that they change stay the same.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen import fields
from jaxgen.adapters import low_rank, merge
from jaxgen.adapters.change import Change
from jaxgen.adapters.merge import Weighted
from jaxgen.adapters.spellings import Module
from jaxgen.types import AnyArray, Params
from jaxgen.weights import layout

UNET = "unet"
WIDTH = 8  # ranks are filled up with zeros to a multiple
# layers that see the image, in groups: where a file changes one, all of its group have factors
GROUPS = {
    "attentions": ("attentions",),
    "convolutions": ("resnets", "samplers", "conv_in", "conv_out"),
}
MERGE = "merge it instead, by set_adapters without per_image"


class Beside(NamedTuple):
    """The factors of K adapters, and how strongly each of B images takes them."""

    factors: Params  # as `low_rank` has them
    scale: AnyArray  # float32 [B, R]


def stack(
    base: Mapping[str, Params], weighted: Sequence[Weighted], per_image: Any, dtype: Any
) -> Beside:
    """Stacks adapters for a UNet; per_image: [B][K], the weight of adapter k in image b.

    Raises ValueError that names the file for what no low-rank path of the UNet can do.
    """
    weights = _weights(per_image, len(weighted))
    leaves = merge.leaves_of(base[UNET])
    changes = [_changes(one, leaves) for one in weighted]
    ranks = [c.right.shape[0] for own in changes for c in own.values() if c.right is not None]
    width = -(-max(ranks, default=1) // WIDTH) * WIDTH
    touched = {_group(path) for own in changes for path in own}
    factors: dict[low_rank.Path, Any] = {}
    for (*place, leaf), kernel in leaves.items():
        path = tuple(place)
        if leaf == "kernel" and _group(path) in touched:
            shape = tuple(kernel.shape)
            down, up = _side_by_side([own.get(path) for own in changes], shape, width)
            factors[*path, "down"], factors[*path, "up"] = (
                jnp.asarray(part, dtype) for part in (down, up)
            )
    strengths = np.asarray([one.strengths[UNET] for one in weighted], np.float32)
    scale = np.repeat(weights * strengths[None], width, axis=1)
    return Beside(traverse_util.unflatten_dict(factors), scale)


def for_batch(beside: Beside | None, count: int) -> Beside | None:
    """The adapters of a call of `count` images; raises ValueError where they are of others."""
    if beside is not None and len(beside.scale) != count:
        raise ValueError(
            f"the adapters were set for {len(beside.scale)} images, one row of per_image each, and "
            f"this call makes {count}; call set_adapters anew"
        )
    return beside


def _weights(per_image: Any, count: int) -> np.ndarray:
    weights: np.ndarray = np.zeros(0)
    with contextlib.suppress(TypeError, ValueError):  # words, or rows of different lengths
        weights = np.asarray(per_image, np.float32)
    if weights.ndim != 2 or weights.shape[-1] != count or not weights.size:
        raise ValueError(
            f"per_image must have one row for each image, each with one number for each of the "
            f"{count} adapters; got {fields.shown(per_image)}"
        )
    if not np.isfinite(weights).all():
        raise ValueError(f"per_image is {fields.shown(per_image)}; give finite numbers")
    return weights


def _changes(one: Weighted, leaves: Mapping[low_rank.Path, Any]) -> dict[low_rank.Path, Change]:
    """The low-rank changes of an adapter by layer of the UNet."""
    changes: dict[low_rank.Path, Change] = {}
    for module, parts in one.adapter.parts.items():
        if one.strengths[module.component] == 0:
            continue
        path = layout.module_path(module.name)
        with merge.named(one.adapter):
            _check_place(module)
            if "bias_difference" in parts or (*path, "kernel") not in leaves:
                raise ValueError(f"{module} is changed otherwise than by a LoRA; {MERGE}")
            scale = one.adapter.scales.get(module)
            own = merge.change_of(module, parts, "kernel", leaves[*path, "kernel"], scale)
            if own is None or own.left is None or own.magnitude is not None:
                raise ValueError(
                    f"{module} has a change that is not of low rank (DoRA, LoHa, LoKr or a whole "
                    f"difference), which no image can have for itself; {MERGE}"
                )
            changes[path] = own
    return changes


def _check_place(module: Module) -> None:
    if module.component != UNET:
        raise ValueError(
            f"it changes {module.component}, and per_image is for the UNet alone; give it the "
            f'strength {{"text": 0}}, or {MERGE}'
        )
    if _group(layout.module_path(module.name)) is None:
        raise ValueError(f"it changes {module}, which all images share; {MERGE}")


def _group(path: low_rank.Path) -> str | None:
    """The group of layers that a layer belongs to; None for those that do not see an image."""
    for name, parts in GROUPS.items():
        if any(part in word for word in path for part in parts):
            return name
    return None


def _side_by_side(
    changes: Sequence[Change | None], kernel: tuple[int, ...], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """A [..., I, K width] and B [K width, O] of a layer; zeros where an adapter has none."""
    rank = width * len(changes)
    rows, up = np.zeros((rank, np.prod(kernel[:-1]))), np.zeros((rank, kernel[-1]))
    for k, own in enumerate(changes):
        if own is not None and own.left is not None and own.right is not None:
            place = slice(k * width, k * width + len(own.right))
            rows[place], up[place] = own.right, own.scale * own.left.T
    if len(kernel) == 2:
        return rows.T, up
    height, columns, inputs = kernel[:3]
    return rows.reshape(rank, inputs, height, columns).transpose(2, 3, 1, 0), up
