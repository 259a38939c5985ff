# SPDX-License-Identifier: MIT
"""Perturbed attention guidance's rows of a batch, which do without self-attention in some layers.

Ahn et al. 2024 (arXiv:2403.17377): there, a pixel attends to nothing but itself. Layers have the
names of diffusers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen import fields
from jaxgen.nn.stable_diffusion.unet_blocks import TextContext
from jaxgen.types import Array

ROWS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
Layers = dict[str, tuple[np.ndarray, ...]]  # by block: of each transformer bool [its blocks]


def layers(names: Any, depths: Mapping[str, Sequence[int]]) -> Layers:
    """Marks what the names choose: "mid", "up_blocks.1", "down_blocks.1.attentions.0", ...

    A name is "down", "mid" or "up" for a row of blocks, or the first parts of a module's name.
    depths: what `UNet2DConditionModel.attention_depths` returns. Raises ValueError for a name that
    chooses nothing.
    """
    listed = [names] if isinstance(names, str) else names
    if (
        not isinstance(listed, list | tuple)
        or not listed
        or not all(isinstance(name, str) for name in listed)
    ):
        raise ValueError(f"pag_layers is {fields.shown(names)}; give a list of names such as 'mid'")
    starts = [ROWS.get(name, name).split(".") for name in listed]
    places = {
        block: [
            [f"{block}.attentions.{i}.transformer_blocks.{j}".split(".") for j in range(depth)]
            for i, depth in enumerate(counts)
        ]
        for block, counts in depths.items()
    }
    every = [place for block in places.values() for one in block for place in one]
    for name, start in zip(listed, starts, strict=True):
        if not any(_within(place, start) for place in every):
            blocks = ", ".join(block for block, counts in depths.items() if counts)
            raise ValueError(
                f"pag_layers holds {fields.shown(name)}, which is no self-attention of this UNet; "
                f"it has some in {blocks or 'no block'}"
            )
    return {
        block.replace(".", "_"): tuple(
            np.array([any(_within(place, start) for start in starts) for place in one])
            for one in transformers
        )
        for block, transformers in places.items()
    }


def with_perturbed(
    text_context: dict[str, TextContext], layers: dict[str, TextContext], rows: Array
) -> dict[str, TextContext]:
    """The context with which some rows do without self-attention in some layers.

    layers: of each transformer of each block bool [its blocks]; rows: bool [B].
    """
    return {
        name: tuple(
            tuple(one._replace(perturbed=rows & chosen[j]) for j, one in enumerate(contexts))
            for contexts, chosen in zip(block, layers[name], strict=True)
        )
        for name, block in text_context.items()
    }


def _within(place: list[str], start: list[str]) -> bool:
    """Whether a module's name begins so; "up_blocks" stands for all of the row."""
    return place[: len(start)] == start
