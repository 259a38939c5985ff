# SPDX-License-Identifier: MIT
"""model_index.json, which names the parts of a pipeline, and what a folder lacks of them."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen import files

# component -> (library, its file stem, the classes that jaxgen implements)
NETWORKS = {
    "unet": ("diffusers", "diffusion_pytorch_model", ("UNet2DConditionModel",)),
    "vae": ("diffusers", "diffusion_pytorch_model", ("AutoencoderKL", "AutoencoderTiny")),
    "text_encoder": ("transformers", "model", ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "text_encoder_2": ("transformers", "model", ("CLIPTextModel", "CLIPTextModelWithProjection")),
}
TOKENIZERS = ("tokenizer", "tokenizer_2")
# Pipelines of PyTorch diffusers whose pictures depend on these parts alone; it passes over the
# other parts that a model_index.json of theirs may name.
PIPELINES = {
    f"StableDiffusion{xl}{task}Pipeline" for xl in ("", "XL") for task in ("", "Img2Img", "Inpaint")
}
# Parts of torch pipelines that jaxgen passes over; they are null in what it writes.
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
VAE_ADVICE = " (give an autoencoder with vae=: a folder, a file or a Hub id)"


def read(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder."""
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    if not (folder / "model_index.json").is_file():
        names = sorted(path.name for path in folder.iterdir())[:12]
        listed = files.printable(", ".join(names), 300) or "nothing"
        raise ValueError(
            f"{folder} has no model_index.json, so it is no diffusers pipeline; it holds {listed}. "
            "Give the folder of a pipeline, or the path of one single-file .safetensors checkpoint"
        )
    return files.read_object(folder / "model_index.json")


def has_part(index: dict[str, Any], name: str) -> bool:
    """Whether an index names a library and a class for a part; null means that it has none."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)


def check_complete(folder: Path, index: dict[str, Any], has_vae: bool) -> list[str]:
    """Notes on what is passed over; one error for all that the index or the folder lacks.

    has_vae: an autoencoder is given, so that the folder needs none.
    """
    faults = _pipeline_faults(index)
    # the XL refiner has the second of both alone
    second = "_2" if all(map(partial(has_part, index), ("text_encoder_2", "tokenizer_2"))) else ""
    required = ("unet", "vae", f"text_encoder{second}", f"tokenizer{second}", "scheduler")
    faults += [
        f"model_index.json names no {name}" + (VAE_ADVICE if name == "vae" else "")
        for name in required
        if not has_part(index, name) and not (has_vae and name == "vae")
    ]
    for name, (_, _, classes) in NETWORKS.items():
        if not has_part(index, name) or (has_vae and name == "vae"):
            continue
        if index[name][1] not in classes:
            own, known = files.printable(index[name][1], 80), " or ".join(classes)
            faults.append(f"{name} is a {own}; jaxgen implements {known}")
        elif not (folder / name / "config.json").is_file():
            faults.append(f"{name}/config.json is missing")
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        faults.append("scheduler/scheduler_config.json is missing")
    faults += [
        f"the folder {name} is missing"
        for name in TOKENIZERS
        if has_part(index, name) and not (folder / name).is_dir()
    ]
    if faults:
        raise ValueError(f"{folder} cannot be loaded: " + "; ".join(faults))
    parts = _other_parts(index)
    return [f"passed over the parts {', '.join(parts)}"] if parts else []


def _pipeline_faults(index: dict[str, Any]) -> list[str]:
    """What the kind of pipeline asks for beyond the parts that jaxgen implements."""
    own = index.get("_class_name")
    if not isinstance(own, str | None):
        return [
            f"its pipeline {files.printable(own, 80)} is code that comes with the model, which "
            "jaxgen does not run"
        ]
    if own in PIPELINES or not _other_parts(index):
        return []
    parts = ", ".join(_other_parts(index))
    return [f"it is a {files.printable(own, 80)}, and jaxgen does not implement its parts {parts}"]


def _other_parts(index: dict[str, Any]) -> list[str]:
    known = {*NETWORKS, *TOKENIZERS, *OPTIONAL, "scheduler"}
    others = [n for n in index if has_part(index, n) and n not in known and not n.startswith("_")]
    return [files.printable(name, 80) for name in others[:12]]


def corrected_unet(index: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A UNet's config as the pipelines of SD 1 and 2 correct it when PyTorch diffusers builds them.

    Before version 0.9 configs were written with a latent size too small; it is 64 in all of them.
    """
    version = re.match(r"(\d{1,4})\.(\d{1,4})", str(config.get("_diffusers_version")))
    old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    size = config.get("sample_size")
    small = isinstance(size, int) and not isinstance(size, bool) and 0 < size < 64
    of_sd = index.get("_class_name") in PIPELINES and "XL" not in index["_class_name"]
    return {**config, "sample_size": 64} if old and small and of_sd else config
