# SPDX-License-Identifier: MIT
"""Low-rank factors -> files that PyTorch loads: PEFT's as diffusers writes them, and kohya's.

factors: by component ("unet", "text_encoder", "text_encoder_2"), trees as `low_rank` has them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from jaxgen.adapters import spellings
from jaxgen.adapters.adapter_file import WEIGHTS
from jaxgen.adapters.peft_config import METADATA
from jaxgen.adapters.spellings import Module
from jaxgen.types import Params
from jaxgen.weights import configs, layout, tensors
from jaxgen.weights.diffusers import Component

# features of the text that a UNet attends to -> how kohya's scripts name the model
BASES = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}


PEFT = WEIGHTS[0]  # the name under which diffusers finds a file in a folder


class Pair(NamedTuple):
    """The two factors of one layer, in PyTorch's layout."""

    module: Module
    down: np.ndarray  # [r, I] or [r, I, kh, kw]
    up: np.ndarray  # [O, r] or [O, r, 1, 1]


def write_peft(
    path: Path,
    components: Mapping[str, Component],
    factors: Mapping[str, Params],
    alpha: float,
    dtype: Any = np.float32,
) -> None:
    """Writes what `load_lora_weights` of diffusers reads; alpha is in the file's metadata."""
    values, config = {}, {}
    for module, down, up in _pairs(components, factors):
        values[f"{module}.lora_A.weight"], values[f"{module}.lora_B.weight"] = down, up
        own = {"r": down.shape[0], "lora_alpha": alpha, "peft_type": "LORA"}
        config |= {f"{module.component}.{key}": value for key, value in own.items()}
        config.setdefault(f"{module.component}.target_modules", []).append(module.name)
    _write(path, values, {METADATA: json.dumps(config, sort_keys=True)}, dtype)


def write_kohya(
    path: Path,
    components: Mapping[str, Component],
    factors: Mapping[str, Params],
    alpha: float,
    dtype: Any = np.float32,
    base: str = "",
) -> None:
    """Writes what kohya's scripts and web interfaces read: underscores, and alpha as a tensor.

    base: the model's name, for metadata, where its sizes are none of BASES.
    """
    prefixes = {name: starts[0] for name, starts in spellings.kohya_prefixes(components).items()}
    values, rank = {}, 0
    for module, down, up in _pairs(components, factors):
        stem, rank = prefixes[module.component] + module.name.replace(".", "_"), down.shape[0]
        values[f"{stem}.lora_down.weight"], values[f"{stem}.lora_up.weight"] = down, up
        values[f"{stem}.alpha"] = np.asarray(alpha, np.float32)
    width: Any = components["unet"].config.get("cross_attention_dim")
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_base_model_version": BASES.get(width, base),
    }
    _write(path, values, metadata, dtype)


def _pairs(components: Mapping[str, Component], factors: Mapping[str, Params]) -> Iterator[Pair]:
    """The factors of all layers in PyTorch's layout, in the order of their names."""
    for component, tree in factors.items():
        flat = traverse_util.flatten_dict(tree)
        as_conv = configs.conv_1x1(components[component].config)
        for path in sorted({path[:-1] for path in flat}):
            name = layout.tensor_name((*path, "kernel")).removesuffix(".weight")
            down, up = (np.asarray(flat[*path, part]) for part in ("down", "up"))
            down = down.transpose(3, 2, 0, 1) if down.ndim == 4 else down.T
            if down.ndim == 2 and path[-1] in as_conv:
                down = down[:, :, None, None]
            up = up.T if down.ndim == 2 else up.T[:, :, None, None]
            yield Pair(Module(component, name), down, up)


def _write(
    path: Path, values: Mapping[str, np.ndarray], metadata: Mapping[str, str], dtype: Any
) -> None:
    stored = {name: tensors.from_array(array) for name, array in values.items()}
    tensors.write_file(path, stored, np.dtype(dtype), metadata)
