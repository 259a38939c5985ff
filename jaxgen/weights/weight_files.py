# SPDX-License-Identifier: MIT
"""The files of a component that hold its weights: one or many, of a variant; only safetensors."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxgen import fields, files
from jaxgen.weights import tensors
from jaxgen.weights.tensors import Tensor

VARIANTS = ("fp16", "bf16")  # taken in this order where there is no plain file
UNSAFE = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".pkl")
CONVERT = """jaxgen opens safetensors only, since the other formats can run code. Convert them once,
where PyTorch is installed and if you trust their origin:
    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained("THE_FOLDER", use_safetensors=False)
    (or of one file: diffusers.StableDiffusionPipeline.from_single_file("THE_FILE"))
    pipe.save_pretrained("NEW_FOLDER", safe_serialization=True)"""
OF_FLAX = "from_flax=True)  # diffusers 0.39 with transformers 4.57: the last that had Flax"
SHARD_BYTES = 10 * 10**9  # diffusers' own limit of one file


def open_component(folder: Path, stem: str, variant: str | None) -> dict[str, Tensor]:
    """The tensors of a component folder. stem: "diffusion_pytorch_model" or "model".

    variant: see `choose`.
    """
    name = choose([path.name for path in folder.iterdir()], stem, variant, str(folder))
    if not name.endswith(".json"):
        return tensors.open_file(folder / name)
    shards = _weight_map(folder / name)
    stored = tensors.open_files(folder / name for name in sorted(set(shards.values())))
    if stored.keys() != shards.keys():
        odd = sorted(stored.keys() ^ shards.keys())
        raise ValueError(
            f"{folder / name} and its files disagree on {len(odd)} tensors, first "
            f"{files.printable(odd[0], 80)}; fetch the folder again"
        )
    return stored


def choose(names: Iterable[str], stem: str, variant: str | None, where: str) -> str:
    """The name of the weights file, or of the index of a sharded one, out of a folder's names.

    variant: "fp16" and the like, else the plain files; None takes the plain files, else the fp16,
    else the bf16 ones.
    """
    names = set(names)
    for suffix in [variant, None] if variant else [None, *VARIANTS]:
        for name in _names_of(stem, suffix):
            if name in names:
                return name
    safe = sorted(name for name in names if name.endswith(".safetensors"))
    unsafe = sorted(name for name in names if name.endswith(UNSAFE))
    if safe:
        has_other = any(name.startswith((f"{stem}.", f"{stem}-")) for name in safe)
        raise ValueError(
            f"{where} has no {stem}{'.' + variant if variant else ''}.safetensors, only "
            f"{files.printable(', '.join(safe), 300)}; "
            + ("pass the variant that is there" if has_other else "if that is it, rename it")
        )
    if unsafe:
        listed = files.printable(", ".join(unsafe), 300)
        of_flax = all(name.endswith(".msgpack") for name in unsafe)
        convert = CONVERT.replace("use_safetensors=False)", OF_FLAX) if of_flax else CONVERT
        raise ValueError(f"{where} has its weights only as {listed}. {convert}")
    raise ValueError(f"{where} has no {stem}.safetensors; is the folder complete?")


def check_ending(path: Path) -> None:
    """ValueError for a path whose ending says that its format can run code."""
    if path.suffix.lower() not in UNSAFE:
        return
    if path.is_file() and files.read_bytes_at(path, 8, 1) == b"{":
        raise ValueError(
            f"{path} looks like safetensors under another ending; rename it to .safetensors"
        )
    raise ValueError(f"{path} is not safetensors. {CONVERT}")


def has_variant(names: Iterable[str], stem: str, variant: str) -> bool:
    """Whether a folder has the weights of this stem as this variant."""
    return not {*_names_of(stem, variant)}.isdisjoint(names)


def _names_of(stem: str, variant: str | None) -> tuple[str, str]:
    dot = f".{variant}" if variant else ""
    return f"{stem}{dot}.safetensors", f"{stem}.safetensors.index{dot}.json"


def shards_of(names: Iterable[str], index: str) -> list[str]:
    """The files that belong to an index by their names, for fetching before it can be read."""
    stem, _, rest = index.partition(".safetensors.index")
    dot = re.escape(rest.removesuffix(".json"))
    pattern = rf"{re.escape(stem)}({dot}-\d+-of-\d+|-\d+-of-\d+{dot})\.safetensors"
    return [name for name in names if re.fullmatch(pattern, name)]


def write_component(
    folder: Path,
    stem: str,
    values: Mapping[str, Tensor],
    dtype: np.dtype | None,
    max_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors as `stem`.safetensors, or as shards of at most `max_bytes` with an index."""
    groups: list[dict[str, Tensor]] = [{}]
    group_bytes = 0
    for name, tensor in values.items():
        size = tensors.stored_bytes(tensor, dtype)
        if groups[-1] and group_bytes + size > max_bytes:
            groups.append({})
            group_bytes = 0
        groups[-1][name] = tensor
        group_bytes += size
    if len(groups) == 1:
        return tensors.write_file(folder / f"{stem}.safetensors", groups[0], dtype)

    weight_map, total = {}, 0
    for i, group in enumerate(groups, 1):
        file = f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors"
        tensors.write_file(folder / file, group, dtype)
        weight_map.update(dict.fromkeys(group, file))
        total += sum(tensors.stored_bytes(tensor, dtype) for tensor in group.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(files.dumps(index))
    return None


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name of an index, every file name proved to stay in the folder."""
    shards = files.read_object(path, files.INDEX_BYTES).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{path} has no weight_map; expected tensor name -> file name")
    for file in set(map(str, shards.values())):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors", file):
            raise ValueError(
                f"{path} points at {fields.shown(file[:120])}; expected the name of a "
                "safetensors file in the same folder"
            )
        if not (path.parent / file).is_file():
            raise ValueError(f"{path} needs {file}, which is missing; is the folder complete?")
    return {name: str(file) for name, file in shards.items()}
