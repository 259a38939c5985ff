# SPDX-License-Identifier: MIT
"""ControlNets as they are published: a folder in diffusers' layout, or a single file.

Single files have diffusers' names or LDM's, with or without "control_model." before them, and no
config: that follows from the shapes, as the UNet's of a whole checkpoint.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from jaxgen import files
from jaxgen.weights import (
    diffusers,
    hub,
    ldm_configs,
    ldm_kinds,
    ldm_names,
    model_index,
    tensors,
    weight_files,
)
from jaxgen.weights.diffusers import Component
from jaxgen.weights.tensors import Tensor

CLASS = "ControlNetModel"
STEM = "diffusion_pytorch_model"
PREFIX = "control_model."
CONTROLNET = (
    "the folder or .safetensors file of a ControlNet, or a Hub id such as "
    "lllyasviel/control_v11p_sd15_canny"
)
UNET_ONLY = ("out_channels", "up_block_types", "sample_size")


def open_controlnet(path_or_id: str | Path, variant: str | None = None) -> Component:
    """Reads a ControlNet's config and the list of its tensors, from a path or a Hub id.

    Raises ValueError where there is none, or where its config is not implemented.
    """

    def wanted(names: list[str]) -> list[str]:
        stored = weight_files.choose(names, STEM, variant, hub.name_of(path_or_id))
        return ["config.json", stored, *weight_files.shards_of(names, stored)]

    path = hub.resolve_part(path_or_id, CONTROLNET, wanted)
    with files.one_error(path):
        return _from_folder(path, variant) if path.is_dir() else _from_file(path)


def _from_folder(folder: Path, variant: str | None) -> Component:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json. Expected {CONTROLNET}"
            f"{model_index.or_single_file(folder)}"
        )
    config = files.read_object(folder / "config.json")
    own = config.get("_class_name", CLASS)
    if own != CLASS:
        raise ValueError(f"it is a {files.printable(own, 80)}; jaxgen implements {CLASS}")
    stored = weight_files.open_component(folder, STEM, variant)
    return _checked(Component(CLASS, config, stored))


def _from_file(path: Path) -> Component:
    weight_files.check_ending(path)
    stored = tensors.open_file(path)
    part = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    if "input_hint_block.0.weight" in part:
        part = _in_diffusers_names(part)
    if "controlnet_cond_embedding.conv_in.weight" not in part:
        raise ValueError(f"it holds no ControlNet. Expected {CONTROLNET}")
    return _checked(Component(CLASS, _config_of(part), part))


def _checked(component: Component) -> Component:
    diffusers.fields(component)  # what is not implemented should be known before any work
    return component


def _in_diffusers_names(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    namer = ldm_names.unet_names(part)
    result = {}
    for old, tensor in part.items():
        new = _control_name(old) or namer(old)
        if new is None or new in result:
            raise ValueError(f"the tensor {files.printable(old)} has no place in a ControlNet")
        result[new] = tensor
    return result


def _control_name(old: str) -> str | None:
    """Names what a ControlNet has beside the UNet's encoder: hint network and 1x1 convolutions."""
    hint = re.fullmatch(r"input_hint_block\.(\d{1,2})\.(weight|bias)", old)
    zero = re.fullmatch(r"zero_convs\.(\d{1,3})\.0\.(weight|bias)", old)
    middle = re.fullmatch(r"middle_block_out\.0\.(weight|bias)", old)
    if hint:
        place = {0: "conv_in", 14: "conv_out"}.get(int(hint[1]), f"blocks.{int(hint[1]) // 2 - 1}")
        return f"controlnet_cond_embedding.{place}.{hint[2]}"
    if zero:
        return f"controlnet_down_blocks.{zero[1]}.{zero[2]}"
    return f"controlnet_mid_block.{middle[1]}" if middle else None


def _config_of(part: Mapping[str, Tensor]) -> dict:
    """The config of a published ControlNet, from its shapes."""
    texts = [name for name in part if name.endswith(".attn2.to_k.weight")]
    width = part[texts[0]].shape[-1] if texts and part[texts[0]].shape else 0
    kind = ldm_kinds.WIDTHS.get(width, "v1")
    unet = {**part, "conv_out.weight": part["conv_in.weight"]}  # which a ControlNet does not have
    config = ldm_configs.infer("UNet2DConditionModel", unet, kind)
    for key in UNET_ONLY:
        config.pop(key)
    widths = [part["controlnet_cond_embedding.conv_in.weight"].shape[0]]
    odd = [f"controlnet_cond_embedding.blocks.{i}.weight" for i in range(1, 2 * len(part), 2)]
    widths += [part[name].shape[0] for name in odd if name in part]
    return {**config, "_class_name": CLASS, "conditioning_embedding_out_channels": widths}
