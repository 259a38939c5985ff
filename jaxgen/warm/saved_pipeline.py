# SPDX-License-Identifier: MIT
"""Pipelines saved for a warm start: weights as the devices take them, and traced programs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import files
from jaxgen.types import Params
from jaxgen.warm.stored_programs import Store
from jaxgen.weights import diffusers
from jaxgen.weights.diffusers import Checkpoint

PROGRAMS = "programs"  # the folder's part


def without_weights(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint's configs and tokenizers alone."""
    components = {name: c._replace(tensors={}) for name, c in checkpoint.components.items()}
    return checkpoint._replace(components=components)


def save(folder: Path, checkpoint: Checkpoint, params: Mapping[str, Params], store: Store) -> None:
    """Writes parameters by component, and the programs of a store; see `StableDiffusion.save`."""
    files.check_new(folder)  # before arrays are copied
    components = {
        name: diffusers.with_linen_params(component, params[name])
        for name, component in checkpoint.components.items()
    }

    def write(partial: Path) -> None:
        diffusers.write(partial, checkpoint._replace(components=components))
        (partial / PROGRAMS).mkdir()
        store.write(partial / PROGRAMS)

    files.write_whole(folder, write)


def shapes(store: Store, trace: Callable[[Any], Params], module: Any) -> Params:
    """Returns the shapes of a network's parameters: the store's, or what `trace` gives."""

    def as_text() -> str:
        return json.dumps(jax.tree.map(lambda leaf: list(leaf.shape), trace(module)))

    stored = json.loads(store.text("shapes", repr(module), as_text))
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(tuple(shape), jnp.float32),
        stored,
        is_leaf=lambda node: isinstance(node, list),
    )


def programs_of(path_or_id: str | Path) -> Path | None:
    """Returns the folder of programs in a saved pipeline, None for other checkpoints."""
    folder = files.existing(path_or_id)
    return folder / PROGRAMS if folder and (folder / PROGRAMS).is_dir() else None
