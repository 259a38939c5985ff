# SPDX-License-Identifier: MIT
"""An adapter's file -> its tensors by module of the model and by what they are there.

Read are safetensors files of kohya's scripts, LyCORIS, diffusers (old and new) and PEFT, with the
ranks' scales from the tensors, from the file's metadata, or from PEFT's adapter_config.json.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxgen import files
from jaxgen.adapters import peft_config, spellings
from jaxgen.adapters.spellings import Module
from jaxgen.weights import hub, tensors
from jaxgen.weights.tensors import Tensor

# the end of a tensor's name -> what the tensor is; "down" and "up" are PEFT's A and B
ROLES = {
    "lora_down.weight": "down",
    "lora.down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "down.weight": "down",
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_up.weight": "up",
    "lora.up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "up.weight": "up",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude_out",
    "lora_magnitude_vector.weight": "magnitude_out",
    "lora_magnitude_vector.default.weight": "magnitude_out",
    "hada_w1_a": "hada_w1_a",
    "hada_w1_b": "hada_w1_b",
    "hada_w2_a": "hada_w2_a",
    "hada_w2_b": "hada_w2_b",
    "hada_t1": "hada_t1",
    "hada_t2": "hada_t2",
    "lokr_w1": "lokr_w1",
    "lokr_w1_a": "lokr_w1_a",
    "lokr_w1_b": "lokr_w1_b",
    "lokr_w2": "lokr_w2",
    "lokr_w2_a": "lokr_w2_a",
    "lokr_w2_b": "lokr_w2_b",
    "lokr_t2": "lokr_t2",
    "diff": "weight_difference",
    "w_norm": "weight_difference",
    "diff_b": "bias_difference",
    "b_norm": "bias_difference",
}
# What jaxgen does not implement, by the ends of its names.
OTHERS = {
    "on_input": "IA3",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "a1.weight": "GLoRA",
    "lora_B.bias": "a LoRA with biases",
    "lora_embedding_A": "a LoRA of embeddings",
}
WEIGHTS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
TITLES = ("modelspec.title", "ss_output_name")  # entries of a file's metadata
BASES = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "Stable Diffusion XL's refiner",
    2048: "Stable Diffusion XL",
}
ADAPTER = (
    "a LoRA: a .safetensors file, a folder that holds one, or a Hub id such as "
    "latent-consistency/lcm-lora-sdv1-5"
)
LISTED = 6
Parts = dict[str, Tensor]  # the tensors of one module by role


class Adapter(NamedTuple):
    """An adapter's tensors, not read yet: by module and role, with PEFT's scales where it has."""

    name: str  # of the file, for messages
    parts: dict[Module, Parts]
    scales: dict[Module, float]  # by the file's configuration, where it says any
    base: str  # the base model as the file's metadata name it, or ""
    names: tuple[str, ...] = ()  # of the file, or of its folder, and as its metadata have it


def read(path_or_id: str | Path, modules: Mapping[str, Iterable[str]]) -> Adapter:
    """Reads the header of an adapter for a model that has these modules, by component.

    path_or_id: a safetensors file, a folder that holds one of WEIGHTS, or a Hub id. Raises one
    ValueError that lists what fits nothing in the model, or names a kind of adapter that is not
    implemented.
    """
    with files.one_error(path_or_id):
        return _read(path_or_id, modules)


def _read(path_or_id: str | Path, modules: Mapping[str, Iterable[str]]) -> Adapter:
    file = _weights_in(path_or_id)
    stored = tensors.open_file(file)
    if not stored:
        raise ValueError(f"{file} holds no tensors; expected the tensors of a LoRA")
    metadata = tensors.metadata(file)
    table = spellings.stems(modules)
    parts: dict[Module, Parts] = {}
    unknown = []
    for name, tensor in stored.items():
        module, role = _place(name, table)
        if module is None or role is None:
            unknown.append(name)
        elif role in parts.setdefault(module, {}):
            raise ValueError(f"{file} has two tensors for {module}, one is {files.printable(name)}")
        else:
            parts[module][role] = tensor
    if unknown:
        raise ValueError(_strangers(file, unknown, len(stored), _base(metadata, stored)))
    config = peft_config.read(file, metadata, is_beside=file.name in WEIGHTS)
    found = {module: peft_config.factors_of(own) for module, own in parts.items()}
    scales = peft_config.scales(config, {m: f for m, f in found.items() if f is not None})
    base = _base(metadata, stored)
    return Adapter(str(file), parts, scales, base, _names(path_or_id, metadata))


def names_of(role: str) -> list[str]:
    """Lists how the names of tensors of a role end, the commonest first."""
    return [end for end, own in ROLES.items() if own == role]


def _weights_in(path_or_id: str | Path) -> Path:
    """Finds the file of tensors: itself, in a folder under its usual name, or from the Hub."""
    if Path(path_or_id).suffix in (".pt", ".bin", ".ckpt", ".pth"):
        raise ValueError(
            f"{path_or_id} is a pickle, which can run code when it is read; jaxgen reads adapters "
            "as safetensors only. Where you trust it, convert it with PyTorch: "
            'safetensors.torch.save_file(torch.load(OLD, weights_only=True), "NEW.safetensors")'
        )
    where = hub.name_of(path_or_id)
    path = hub.resolve_part(path_or_id, ADAPTER, lambda names: _wanted(names, where))
    if not path.is_dir():
        return path
    return path / _wanted([file.name for file in path.iterdir()], str(path))[0]


def _wanted(names: list[str], where: str) -> list[str]:
    """Chooses the weights among the files of a folder, and PEFT's configuration if there is one."""
    present = [name for name in WEIGHTS if name in names]
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if not present and len(others) != 1:
        raise ValueError(
            f"{where} has neither {' nor '.join(WEIGHTS)}, and {len(others)} other safetensors "
            "files; give the path of the file itself"
        )
    return [(present or others)[0], *(name for name in names if name == peft_config.CONFIG)]


def _place(name: str, table: Mapping[str, Module]) -> tuple[Module | None, str | None]:
    """Splits a tensor's name into a stem and its role, in the one way that gives a known stem."""
    cuts = [i for i, character in enumerate(name) if character == "."]
    for cut in cuts:
        module, role = table.get(name[:cut]), ROLES.get(name[cut + 1 :])
        if module is not None and role is not None:
            return module, role
    return None, None


def _strangers(file: Path, unknown: list[str], total: int, base: str) -> str:
    """Says what the tensors are that fit nothing."""
    kinds = {kind for end, kind in OTHERS.items() if any(n.endswith(end) for n in unknown)}
    listed = ", ".join(files.printable(name, 120) for name in unknown[:LISTED])
    more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
    text = (
        f"{file}: {len(unknown)} of its {total} tensors fit nothing in this model: {listed}{more}"
    )
    if kinds:
        return f"{text}. It is {' and '.join(sorted(kinds))}, which jaxgen does not implement"
    if not any(name.endswith(tuple(ROLES)) for name in unknown):
        return f"{text}. Expected a LoRA; is it a whole checkpoint or another kind of file?"
    made_for = f"The file says that it was made for {base}" if base else "The file names no base"
    return f"{text}. {made_for}; load a pipeline of the model that it was trained on"


def _base(metadata: Mapping[str, str], stored: Mapping[str, Tensor]) -> str:
    """Says which model a file was made for, by its metadata or by the text it attends to; or ""."""
    for key in ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name"):
        if metadata.get(key):
            return files.printable(metadata[key], 80)
    widths = {
        tensor.shape[1]
        for name, tensor in stored.items()
        if re.search(r"attn2.*to_[kv]", name)
        and ROLES.get(name[name.find(".lora") + 1 :]) == "down"
        and len(tensor.shape) > 1
    }
    return BASES.get(widths.pop(), "") if len(widths) == 1 else ""


def _names(path_or_id: str | Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Lists the names that say what an adapter is; a usual file name says nothing, its folder's
    does."""
    path = Path(hub.name_of(path_or_id))
    own = path.parent.name if path.name in WEIGHTS and path.parent.name else path.name
    titles = (files.printable(metadata[key], 80) for key in TITLES if metadata.get(key))
    return (files.printable(own, 80), *titles)
