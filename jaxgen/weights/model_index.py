# SPDX-License-Identifier: MIT
"""model_index.json, which names the parts of a pipeline; what a folder lacks of them, and what to
give instead of one that is no pipeline.
"""

import itertools
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.weights.weight_files import CONVERT, UNSAFE

INDEX = "model_index.json"
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
PART_FILES = ("diffusion_pytorch_model", "config.json")  # how files of a part alone begin
MOST_ENTRIES = 200  # of one folder that are looked at
LISTED = 6
VAE_ADVICE = " (give an autoencoder with vae=: a folder, a file or a Hub id)"


def read(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder."""
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    check_is_pipeline(folder)
    index = files.read_object(folder / "model_index.json")
    return {name: _of_torch(value) for name, value in index.items()}


def _of_torch(value: Any) -> Any:
    """An entry of the index without "Flax" before a class, which Flax pipelines wrote."""
    if isinstance(value, list):
        return [_of_torch(part) for part in value]
    return value.removeprefix("Flax") if isinstance(value, str) else value


def check_is_pipeline(folder: Path) -> None:
    """Raises ValueError for a folder without model_index.json that says what to give instead."""
    if not (folder / INDEX).is_file():
        names = sorted(path.name for path in folder.iterdir())[:12]
        listed = files.printable(", ".join(names), 300) or "nothing"
        raise ValueError(
            f"{folder} has no model_index.json, so it is no diffusers pipeline; it holds {listed}: "
            f"{_instead(folder)}"
        )


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
    required = ["unet", "vae", f"text_encoder{second}", f"tokenizer{second}", "scheduler"]
    pairs = zip(("text_encoder", "text_encoder_2"), TOKENIZERS, strict=True)
    required += [own for encoder, own in pairs if has_part(index, encoder) and own not in required]
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
        text = f"{folder} cannot be loaded: {'; '.join(faults)}"
        raise ValueError(text + or_single_file(folder))
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


def _instead(folder: Path) -> str:
    """Says what a folder without model_index.json is, and what to give instead."""
    below = list(itertools.islice(_pipelines_below(folder), LISTED + 1))
    names = _names(folder)
    if (folder.parent / INDEX).is_file():
        return f"it is a part of a pipeline; give that folder: {_shown(folder.parent)}"
    if below:
        return f"give {_one_of(below)}, which {'is a pipeline' if len(below) == 1 else 'are'}"
    if any(name.startswith(PART_FILES) for name in names):
        return "it seems to be one network alone; give the folder of the whole pipeline"
    if single := single_files(folder):
        return f"give the path of a single-file checkpoint itself: {_one_of(single)}"
    if parts := [name for name in (*NETWORKS, *TOKENIZERS, "scheduler") if name in names]:
        return (
            f"it has the parts {', '.join(parts)} without the {INDEX} that joins them; fetch the "
            "whole folder"
        )
    if any(name.endswith(UNSAFE) for name in names):
        return CONVERT
    return "give the folder of a pipeline, or the path of one single-file .safetensors checkpoint"


def or_single_file(folder: Path) -> str:
    """Says which single files lie in a folder, as the end of a sentence; nothing without any."""
    single = single_files(folder)
    return f"; or give the path of a single file itself: {_one_of(single)}" if single else ""


def single_files(folder: Path) -> list[Path]:
    """The safetensors files right in a folder that may be whole checkpoints."""
    names = [name for name in _names(folder) if name.endswith(".safetensors")]
    return [folder / name for name in names if not name.startswith(PART_FILES)]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in itertools.islice(folder.iterdir(), MOST_ENTRIES))


def _pipelines_below(folder: Path) -> Iterator[Path]:
    """The pipelines one level lower, or two: the Hub's cache keeps them in snapshots/REVISION."""
    for name in _names(folder):
        inner = folder / name
        if (inner / INDEX).is_file():
            yield inner
        elif name == "snapshots" and inner.is_dir():
            yield from (inner / own for own in _names(inner) if (inner / own / INDEX).is_file())


def _one_of(paths: list[Path]) -> str:
    listed = ", ".join(map(_shown, paths[:LISTED]))
    return listed if len(paths) == 1 else f"one of {listed}{', ...' * (len(paths) > LISTED)}"


def _shown(path: Path) -> str:
    return files.printable(path, 300)
