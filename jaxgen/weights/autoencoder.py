# SPDX-License-Identifier: MIT
"""An autoencoder by itself, to be used instead of a checkpoint's own: a folder or a single file.

Single files have their tensors in the names of LDM or of diffusers, alone or under a prefix, and
no config. How latents are scaled then follows from the checkpoint that the autoencoder is put into,
but for the tiny autoencoder, whose latents are the sampler's own.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.weights import (
    diffusers,
    ldm_configs,
    ldm_kinds,
    ldm_names,
    model_index,
    tensors,
    weight_files,
)
from jaxgen.weights.diffusers import Component
from jaxgen.weights.tensors import Tensor

CLASS, TINY = "AutoencoderKL", "AutoencoderTiny"
# TAESD's two files, each of one half, as its author publishes them
ENCODER_FILE, DECODER_FILE = "taesd_encoder.safetensors", "taesd_decoder.safetensors"


def read(path: str | Path, variant: str | None = None) -> Component:
    """The autoencoder in its folder, in a pipeline's folder, or in a single file.

    Raises ValueError when there is none in it.
    """
    path = Path(path)
    with files.one_error(path):
        if not path.is_dir():
            return _from_file(path)
        if (path / ENCODER_FILE).is_file() and (path / DECODER_FILE).is_file():
            return _from_halves(path)
        folder = path if (path / "config.json").is_file() else path / "vae"
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{path} holds no autoencoder: neither it nor its folder vae has a config.json"
                f"{model_index.or_single_file(path)}"
            )
        own = files.read_object(folder / "config.json").get("_class_name", CLASS)
        if own not in (CLASS, TINY):
            raise ValueError(
                f"{folder} holds a {files.printable(own, 80)}; jaxgen implements {CLASS} and {TINY}"
            )
        component = diffusers.read_component(folder, "vae", own, variant)
        factor = diffusers.fields(component)[
            "scaling_factor"
        ]  # the class's own where none is given
        return component._replace(config={**component.config, "scaling_factor": factor})


def wanted_files(names: list[str], variant: str | None, where: str) -> list[str]:
    """Of the paths in a remote folder, those that `read` will open."""
    prefix = "" if "config.json" in names else "vae/"
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    stored = weight_files.choose(inside, "diffusion_pytorch_model", variant, where)
    shards = weight_files.shards_of(inside, stored) if stored.endswith(".json") else []
    return [prefix + name for name in ("config.json", stored, *shards)]


def _from_file(path: Path) -> Component:
    weight_files.check_ending(path)
    stored = tensors.open_file(path)
    if path.name in (ENCODER_FILE, DECODER_FILE):
        raise ValueError(
            f"{path} is one half of a tiny autoencoder; give the folder that holds both "
            f"{ENCODER_FILE} and {DECODER_FILE}"
        )
    if is_tiny(stored):
        return _tiny(stored)
    prefix = next((p for p in ldm_names.VAE if any(n.startswith(p) for n in stored)), "")
    part = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
    if not any(name.startswith("decoder.") for name in part):
        raise ValueError(f"{path} holds no autoencoder: none of its tensors is of a decoder")
    part, unnamed = _in_diffusers_names(part)
    strays = ldm_names.strays_of_part(stored, prefix, unnamed)
    notes = tuple(f"{path.name}: {note}" for note in ldm_kinds.stray_notes(strays))
    return Component(CLASS, ldm_configs.infer(CLASS, part, None), part, notes)


def _in_diffusers_names(part: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in diffusers' names, and the names of those that have no place there."""
    if any(name.startswith("decoder.up_blocks.") for name in part):
        return dict(part), []
    renamed, strays = ldm_names.rename_part(part, ldm_names.vae_names(part))
    return {name: ldm_names.as_linear(name, tensor) for name, tensor in renamed.items()}, strays


# --- the tiny one ------------------------------------------------------------------------------


def is_tiny(names: Mapping[str, Tensor]) -> bool:
    """Tells whether tensors are those of a TAESD: halves that are plain lists of layers."""
    pattern = re.compile(r"(encoder|decoder)\.(layers\.)?\d+\.")
    return bool(names) and all(pattern.match(name) for name in names)


def _from_halves(folder: Path) -> Component:
    halves = {"encoder": folder / ENCODER_FILE, "decoder": folder / DECODER_FILE}
    return _tiny(
        {
            f"{half}.{name}": tensor
            for half, file in halves.items()
            for name, tensor in tensors.open_file(file).items()
        }
    )


def _tiny(stored: Mapping[str, Tensor]) -> Component:
    """A tiny autoencoder from its tensors, in diffusers' names or its author's."""
    part = dict(_tiny_names(stored))
    config: dict[str, Any] = {"_class_name": TINY, "scaling_factor": 1.0}
    for half in ("encoder", "decoder"):
        blocks, width = _tiny_blocks(part, half)
        config[f"num_{half}_blocks"] = blocks
        config[f"{half}_block_out_channels"] = [width] * len(blocks)
    config["latent_channels"] = part["decoder.layers.0.weight"].shape[1]
    return Component(TINY, config, part)


def _tiny_names(stored: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names as diffusers has them; its author's decoder counts the clamp before it as layer 0."""
    for name, tensor in stored.items():
        half, *rest = name.split(".")
        if rest[0] == "layers":
            yield name, tensor
        else:
            layer = int(rest[0]) - (half == "decoder")
            yield ".".join([half, "layers", str(layer), *rest[1:]]), tensor


def _tiny_blocks(part: Mapping[str, Tensor], half: str) -> tuple[list[int], int]:
    """The number of blocks of every level, and the width, from the places in the list of layers."""
    layers = {int(name.split(".")[2]) for name in part if name.startswith(f"{half}.")}
    blocks = {int(n.split(".")[2]) for n in part if n.startswith(f"{half}.") and ".conv." in n}
    plain = sorted(layers - blocks)  # single convolutions, which stand between the levels
    if len(plain) < 2 or plain[0] != 0 or f"{half}.layers.0.weight" not in part:
        raise ValueError(f"the {half} of the tiny autoencoder lacks its first or last convolution")
    counts = [sum(a < i < b for i in blocks) for a, b in itertools.pairwise(plain)]
    return counts, part[f"{half}.layers.0.weight"].shape[0]
