# SPDX-License-Identifier: MIT
"""A pipeline folder in diffusers' layout, read and written; weights stay on disk until used.

model_index.json
unet/  vae/                    config.json, diffusion_pytorch_model[.fp16].safetensors
text_encoder/  text_encoder_2/ config.json, model[.fp16].safetensors
tokenizer/  tokenizer_2/       vocab.json, merges.txt, tokenizer_config.json, ...
scheduler/                     scheduler_config.json
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import files
from jaxgen.types import Params
from jaxgen.weights import configs, layout, tokenizer, weight_files
from jaxgen.weights.tensors import Tensor
from jaxgen.weights.tokenizer import Tokenizer

# component -> (library, its file stem, the classes that jaxgen implements)
NETWORKS = {
    "unet": ("diffusers", "diffusion_pytorch_model", ("UNet2DConditionModel",)),
    "vae": ("diffusers", "diffusion_pytorch_model", ("AutoencoderKL",)),
    "text_encoder": ("transformers", "model", ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "text_encoder_2": ("transformers", "model", ("CLIPTextModel", "CLIPTextModelWithProjection")),
}
TOKENIZERS = ("tokenizer", "tokenizer_2")
# Parts of torch pipelines that jaxgen passes over; they are null in what it writes.
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
DIFFUSERS_VERSION = "0.35.0"  # the oldest diffusers that what is written here is tested for


class Component(NamedTuple):
    """One network of a checkpoint: its class in diffusers, its config.json and its weights."""

    class_name: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]


class Checkpoint(NamedTuple):
    """A whole pipeline. `index` holds model_index.json without the components, so the pipeline's
    `_class_name` and options such as force_zeros_for_empty_prompt; `scheduler` is its config."""

    index: dict[str, Any]
    components: dict[str, Component]
    tokenizers: dict[str, Tokenizer]
    scheduler: dict[str, Any]


def fields(component: Component) -> dict[str, Any]:
    """The fields of jaxgen's module for a component, e.g. `UNet2DConditionModel(**fields(c))`."""
    match component.class_name:
        case "UNet2DConditionModel":
            return configs.unet_fields(component.config)
        case "AutoencoderKL":
            return configs.autoencoder_kl_fields(component.config)
        case "CLIPTextModel" | "CLIPTextModelWithProjection" as name:
            projects = name == "CLIPTextModelWithProjection"
            return {**configs.clip_text_fields(component.config), "with_projection": projects}
    raise ValueError(f"jaxgen has no module for the class {component.class_name}")


def with_params(component: Component, params: Params) -> Component:
    """The component with the parameters of its jaxgen module as weights, for `write`."""
    stored = layout.to_tensors(params, configs.conv_1x1(component.config))
    return component._replace(tensors=stored)


def read(folder: str | Path, variant: str | None = None) -> Checkpoint:
    """The pipeline in a folder, checked, with no weight read yet.

    variant: "fp16", "bf16" or another suffix of the weight files; None prefers the plain ones.
    Raises ValueError that names what is missing, malformed or not implemented.
    """
    folder = Path(folder)
    index = _read_index(folder)
    _check_complete(folder, index)
    components = {
        name: _read_component(folder / name, name, index[name][1], variant)
        for name in NETWORKS
        if _present(index, name)
    }
    tokens = {name: tokenizer.read(folder / name) for name in TOKENIZERS if _present(index, name)}
    scheduler = files.read_object(folder / "scheduler" / "scheduler_config.json")
    scheduler.setdefault("_class_name", index["scheduler"][1])
    options = {name: value for name, value in index.items() if not isinstance(value, list)}
    return Checkpoint(options, components, tokens, scheduler)


def write(folder: str | Path, checkpoint: Checkpoint, dtype: Any = None) -> None:
    """Write a pipeline that PyTorch diffusers loads; floats are cast to `dtype` if given.

    The folder appears when it is complete, and an existing one is never touched: ValueError.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists; choose a new folder or remove it first")
    files.write_whole(folder, lambda partial: _write(partial, checkpoint, dtype))


def wanted_files(names: list[str], variant: str | None, where: str) -> list[str]:
    """Of the paths in a remote folder, those that `read` will open."""
    if "model_index.json" not in names:
        raise ValueError(
            f"{where} is no diffusers pipeline: it has no model_index.json. Of a repository with "
            "single-file checkpoints, fetch one and give its path"
        )
    wanted = ["model_index.json", "scheduler/scheduler_config.json"]
    for name in TOKENIZERS:
        ends = (".json", ".txt")
        wanted += [n for n in names if n.startswith(f"{name}/") and n.endswith(ends)]
    for name, (_, stem, _) in NETWORKS.items():
        inside = [n.removeprefix(f"{name}/") for n in names if n.startswith(f"{name}/")]
        if inside:
            chosen = weight_files.choose(inside, stem, variant, f"{where}/{name}")
            inside_files = ["config.json", chosen]
            inside_files += (
                weight_files.shards_of(inside, chosen) if chosen.endswith(".json") else []
            )
            wanted += [f"{name}/{file}" for file in inside_files]
    return wanted


def _read_index(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    if not (folder / "model_index.json").is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise ValueError(
            f"{folder} has no model_index.json, so it is no diffusers pipeline; it holds {found}. "
            "Give the folder of a pipeline, or the path of one single-file .safetensors checkpoint"
        )
    return files.read_object(folder / "model_index.json")


def _present(index: dict[str, Any], name: str) -> bool:
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)


def _check_complete(folder: Path, index: dict[str, Any]) -> None:
    """One error for all that the index lacks, and all that it names but the folder lacks."""
    faults = [
        f"model_index.json names no {name}"
        for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        if not _present(index, name)
    ]
    known = {*NETWORKS, *TOKENIZERS, *OPTIONAL, "scheduler"}
    faults += [
        f"jaxgen does not know the part {name[:80]}"
        for name in index
        if _present(index, name) and name not in known
    ]
    for name, (_, _, classes) in NETWORKS.items():
        if _present(index, name) and index[name][1] not in classes:
            known = " or ".join(classes)
            faults.append(f"{name} is a {index[name][1][:80]}; jaxgen implements {known}")
        elif _present(index, name) and not (folder / name / "config.json").is_file():
            faults.append(f"{name}/config.json is missing")
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        faults.append("scheduler/scheduler_config.json is missing")
    faults += [
        f"the folder {name} is missing"
        for name in TOKENIZERS
        if _present(index, name) and not (folder / name).is_dir()
    ]
    if faults:
        raise ValueError(f"{folder} cannot be loaded: " + "; ".join(faults))


def _read_component(folder: Path, name: str, class_name: str, variant: str | None) -> Component:
    config = files.read_object(folder / "config.json")
    stored = weight_files.open_component(folder, NETWORKS[name][1], variant)
    component = Component(class_name, config, with_text_model(stored, class_name))
    try:
        fields(component)  # an option that is not implemented should be known before any work
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    return component


def with_text_model(stored: dict[str, Tensor], class_name: str) -> dict[str, Tensor]:
    """Text encoders' tensors under "text_model.", which transformers 5.6 and later leave out."""
    if not class_name.startswith("CLIPText") or any(n.startswith("text_model.") for n in stored):
        return stored
    return {
        n if n.startswith("text_projection.") else f"text_model.{n}": t for n, t in stored.items()
    }


def _write(folder: Path, checkpoint: Checkpoint, dtype: Any) -> None:
    index = {"_diffusers_version": DIFFUSERS_VERSION, **checkpoint.index}
    index.update({name: [None, None] for name in OPTIONAL})
    folder.mkdir()
    for name, component in checkpoint.components.items():
        library, stem, _ = NETWORKS[name]
        index[name] = [library, component.class_name]
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(files.dumps(component.config))
        weight_files.write_component(folder / name, stem, component.tensors, dtype)
    for name, tokens in checkpoint.tokenizers.items():
        index[name] = ["transformers", "CLIPTokenizer"]
        (folder / name).mkdir()
        tokenizer.write(folder / name, tokens)
    index["scheduler"] = ["diffusers", checkpoint.scheduler["_class_name"]]
    (folder / "scheduler").mkdir()
    text = files.dumps(checkpoint.scheduler)
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    (folder / "model_index.json").write_text(files.dumps(index))
