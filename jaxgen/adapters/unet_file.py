# SPDX-License-Identifier: MIT
"""A UNet by itself in place of a checkpoint's own, as distilled models are published.

folder   config.json and weights, alone or in the folder `unet` of a pipeline: the config counts
file     tensors in diffusers' names, or in LDM's under "model.diffusion_model.", of the same
         layers as the checkpoint's own, whose config holds
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

from jaxgen import files
from jaxgen.weights import (
    diffusers,
    hub,
    ldm_kinds,
    ldm_names,
    model_index,
    tensors,
    weight_files,
)
from jaxgen.weights.diffusers import Checkpoint, Component
from jaxgen.weights.tensors import Tensor

CLASS = "UNet2DConditionModel"
STEM = "diffusion_pytorch_model"
UNET = (
    "the folder or .safetensors file of a UNet, or a Hub id such as latent-consistency/lcm-sdxl, "
    "made from this model"
)


def with_unet(
    checkpoint: Checkpoint, path_or_id: str | Path, variant: str | None = None
) -> Checkpoint:
    """The checkpoint with the UNet of a folder, a file or a Hub id; no weight is read yet.

    The UNet's name counts where the checkpoint's own says nothing of a distilled model. Raises
    ValueError where there is no UNet, or one that does not fit. One warning says what was passed
    over.
    """

    def wanted(names: list[str]) -> list[str]:
        start = "" if "config.json" in names else "unet/"
        inside = [name.removeprefix(start) for name in names if name.startswith(start)]
        stored = weight_files.choose(inside, STEM, variant, hub.name_of(path_or_id))
        shards = weight_files.shards_of(inside, stored) if stored.endswith(".json") else []
        return [start + name for name in ("config.json", stored, *shards)]

    path = hub.resolve_part(path_or_id, UNET, wanted)
    own = checkpoint.components["unet"]
    with files.one_error(path):
        component = _from_folder(path, variant) if path.is_dir() else _from_file(path, own)
    if component.notes:
        text = f"{path}: {'; '.join(component.notes)}"
        warnings.warn(files.printable(text, 2000), stacklevel=2)
    index = checkpoint.index | {"_name_or_path": hub.name_of(path_or_id)}
    return checkpoint._replace(index=index, components={**checkpoint.components, "unet": component})


def _from_folder(path: Path, variant: str | None) -> Component:
    folder = path if (path / "config.json").is_file() else path / "unet"
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{path} holds no UNet: neither it nor its folder unet has a config.json"
            f"{model_index.or_single_file(path)}"
        )
    own = files.read_object(folder / "config.json").get("_class_name", CLASS)
    if own != CLASS:
        raise ValueError(f"{folder} holds a {files.printable(own, 80)}; jaxgen implements {CLASS}")
    component = diffusers.read_component(folder, "unet", CLASS, variant)
    return component._replace(notes=tuple(diffusers.config_notes("unet", component)))


def _from_file(path: Path, own: Component) -> Component:
    weight_files.check_ending(path)
    part, strays = _in_diffusers_names(tensors.open_file(path))
    # sizes, for a linear layer may be a 1x1 convolution in a file
    expected = {name: math.prod(tensor.shape) for name, tensor in own.tensors.items()}
    sizes = {name: math.prod(tensor.shape) for name, tensor in part.items()}
    odd = sorted({name for name, _ in expected.items() ^ sizes.items()})
    if odd:
        raise ValueError(
            f"{path} is no UNet for this model: {len(odd)} tensors differ from its own, first "
            f"{files.printable(odd[0])}. Expected {UNET}"
        )
    return own._replace(tensors=part, notes=tuple(ldm_kinds.stray_notes(strays)))


def _in_diffusers_names(stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the UNet in diffusers' names, and the names that are of no model's part."""
    start = ldm_kinds.UNET
    inside = {n.removeprefix(start): t for n, t in stored.items() if n.startswith(start)}
    if not inside:
        return dict(stored), []
    namer = ldm_names.unet_names(inside)
    part = {namer(name) or name: tensor for name, tensor in inside.items()}
    return part, ldm_names.strays_of_part(stored, start)
