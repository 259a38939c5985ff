# SPDX-License-Identifier: MIT
"""A pipeline folder in diffusers' layout, read and written; weights stay on disk until used.

model_index.json
unet/  vae/                    config.json, diffusion_pytorch_model[.fp16].safetensors
text_encoder/  text_encoder_2/ config.json, model[.fp16].safetensors
tokenizer/  tokenizer_2/       vocab.json, merges.txt, tokenizer_config.json, ...
scheduler/                     scheduler_config.json
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxgen import files
from jaxgen.types import Params
from jaxgen.weights import configs, layout, model_index, tokenizer, weight_files
from jaxgen.weights.model_index import NETWORKS, TOKENIZERS
from jaxgen.weights.tensors import Tensor
from jaxgen.weights.tokenizer import Tokenizer

# Keys of an autoencoder's config that say how its latents are scaled for the UNet.
SCALING = {"scaling_factor", "shift_factor", "latents_mean", "latents_std"}
TEXT_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")  # of CLIP's text model
DIFFUSERS_VERSION = "0.35.0"  # the oldest diffusers that what is written here is tested for


class Component(NamedTuple):
    """One network of a checkpoint: its class in diffusers, its config.json and its weights.

    `notes` says in plain sentences what of a file of its own was passed over.
    """

    class_name: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


class Checkpoint(NamedTuple):
    """A whole pipeline. `index` holds model_index.json without the components, so the pipeline's
    `_class_name` and options such as force_zeros_for_empty_prompt; `scheduler` is its config.
    `notes` says in plain sentences what was passed over or chosen while the files were read; `name`
    is what it was opened by."""

    index: dict[str, Any]
    components: dict[str, Component]
    tokenizers: dict[str, Tokenizer]
    scheduler: dict[str, Any]
    notes: tuple[str, ...] = ()
    name: str = ""


def fields(component: Component) -> dict[str, Any]:
    """The fields of jaxgen's module for a component, e.g. `UNet2DConditionModel(**fields(c))`."""
    match component.class_name:
        case "UNet2DConditionModel":
            return configs.unet_fields(component.config)
        case "AutoencoderKL":
            return configs.autoencoder_kl_fields(component.config)
        case "AutoencoderTiny":
            return configs.autoencoder_tiny_fields(component.config)
        case "ControlNetModel":
            return configs.controlnet_fields(component.config)
        case "CLIPTextModel" | "CLIPTextModelWithProjection" as name:
            projects = name == "CLIPTextModelWithProjection"
            values = configs.clip_text_fields(component.config, projects)
            return {**values, "with_projection": projects}
    raise ValueError(f"jaxgen has no module for the class {component.class_name}")


def with_params(component: Component, params: Params) -> Component:
    """The component with the parameters of its jaxgen module as weights, for `write`."""
    stored = layout.to_tensors(params, configs.conv_1x1(component.config))
    return component._replace(tensors=stored)


def with_linen_params(component: Component, params: Params) -> Component:
    """The same in linen's layout: quicker to read, and for jaxgen alone."""
    return component._replace(tensors=layout.to_linen_tensors(params))


def read(
    folder: str | Path, variant: str | None = None, vae: Component | None = None
) -> Checkpoint:
    """The pipeline in a folder, checked, with no weight read yet.

    variant: "fp16", "bf16" or another suffix of the weight files, of the parts that have it; None
    prefers the plain ones. vae: an autoencoder to take instead of the folder's own, which may lack.
    Raises ValueError that names what is missing, malformed or not implemented.
    """
    with files.one_error(folder):
        return _read(Path(folder), variant, vae)


def _read(folder: Path, variant: str | None, vae: Component | None) -> Checkpoint:
    index = model_index.read(folder)
    notes = model_index.check_complete(folder, index, has_vae=vae is not None)
    parts = [
        name
        for name in NETWORKS
        if model_index.has_part(index, name) and not (vae and name == "vae")
    ]
    if variant:
        listings = {name: [path.name for path in (folder / name).iterdir()] for name in parts}
        notes += variant_notes(listings, variant, str(folder))
    components = {}
    for name in parts:
        components[name] = read_component(folder / name, name, index[name][1], variant)
    unet = components["unet"]
    config = model_index.corrected_unet(index, unet.config)
    if config is not unet.config:
        components["unet"] = unet._replace(config=config)
        notes.append(
            f"took latents of 64 x 64, not {unet.config['sample_size']}, as diffusers does"
        )
    if vae:
        components["vae"] = with_scaling(vae, _vae_scaling(folder))
        notes += vae.notes
    notes += [note for name in components for note in config_notes(name, components[name])]
    tokens = {
        name: tokenizer.read(folder / name)
        for name in TOKENIZERS
        if model_index.has_part(index, name)
    }
    scheduler = files.read_object(folder / "scheduler" / "scheduler_config.json", infinities=True)
    notes += _scheduler_notes(scheduler, index["scheduler"][1])
    scheduler["_class_name"] = index["scheduler"][1]
    options = {name: value for name, value in index.items() if not isinstance(value, list)}
    return Checkpoint(options, components, tokens, scheduler, tuple(notes))


def _scheduler_notes(scheduler: Mapping[str, Any], class_name: str) -> list[str]:
    """A note where the scheduler's config names another class than the index, which decides."""
    own = scheduler.get("_class_name", class_name)
    if own in (class_name, f"Flax{class_name}"):
        return []
    taken = f"took the scheduler {files.printable(class_name, 80)} of model_index.json"
    return [f"{taken}, not {files.printable(own, 80)} of its own config, as diffusers does"]


def config_notes(name: str, component: Component) -> list[str]:
    """What a component's config says that its class does not know, as a note."""
    return key_notes(name, configs.unknown_keys(component.class_name, component.config))


def key_notes(part: str, keys: Sequence[str]) -> list[str]:
    """A note on keys of a part's config that were passed over, if there are any."""
    if not keys:
        return []
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    listed = files.printable(", ".join(keys[:12]), 300) + (" ..." if len(keys) > 12 else "")
    return [f"{part}/{file}: passed over {len(keys)} unknown keys ({listed})"]


def with_scaling(vae: Component, config: Mapping[str, Any]) -> Component:
    """A replacing autoencoder, with the scaling of the one it replaces where it states none."""
    own = {key: value for key, value in config.items() if key in SCALING}
    return vae if vae.config.keys() & SCALING else vae._replace(config={**own, **vae.config})


def _vae_scaling(folder: Path) -> dict[str, Any]:
    path = folder / "vae" / "config.json"
    return files.read_object(path) if path.is_file() else {}


def write(folder: str | Path, checkpoint: Checkpoint, dtype: Any = None) -> None:
    """Write a pipeline that PyTorch diffusers loads; floats are cast to `dtype` if given.

    The folder appears when it is complete, and an existing one is never touched: ValueError.
    """
    folder = Path(folder)
    files.check_new(folder)
    files.write_whole(folder, lambda partial: _write(partial, checkpoint, dtype))


def wanted_files(names: list[str], variant: str | None, where: str) -> list[str]:
    """Of the paths in a remote folder, those that `read` will open."""
    if "model_index.json" not in names:
        single = [name for name in names if name.endswith(".safetensors")]
        listed = files.printable(", ".join(single[:6]), 300) or "none"
        raise ValueError(
            f"{where} is no diffusers pipeline: it has no model_index.json. Of a repository with "
            f"single-file checkpoints, fetch one (hf download {where} FILE) and give its path; its "
            f"safetensors files: {listed}"
        )
    wanted = ["model_index.json", "scheduler/scheduler_config.json"]
    for name in TOKENIZERS:
        ends = (".json", ".txt")
        wanted += [n for n in names if n.startswith(f"{name}/") and n.endswith(ends)]
    listings = {
        name: [n.removeprefix(f"{name}/") for n in names if n.startswith(f"{name}/")]
        for name in NETWORKS
    }
    listings = {name: inside for name, inside in listings.items() if inside}
    if variant:
        variant_notes(listings, variant, where)
    for name, inside in listings.items():
        stored = weight_files.choose(inside, NETWORKS[name][1], variant, f"{where}/{name}")
        shards = weight_files.shards_of(inside, stored) if stored.endswith(".json") else []
        wanted += [f"{name}/{file}" for file in ("config.json", stored, *shards)]
    return wanted


def variant_notes(listings: Mapping[str, list[str]], variant: str, where: str) -> list[str]:
    """A note on the parts that lack a variant. listings: component -> names of its files.

    Raises ValueError when no part has it.
    """
    lacking = [
        name
        for name, inside in listings.items()
        if not weight_files.has_variant(inside, NETWORKS[name][1], variant)
    ]
    if listings and len(lacking) == len(listings):
        present = sorted({n for inside in listings.values() for n in inside if "safetensors" in n})
        raise ValueError(
            f"{where} has no weights of the variant {variant!r}, only "
            f"{files.printable(', '.join(present), 300) or 'other kinds of files'}; pass the "
            "variant that is there, or none"
        )
    taken = f"took the plain weights of {', '.join(lacking)}, which has no variant {variant!r}"
    return [taken] if lacking else []


def read_component(folder: Path, name: str, class_name: str, variant: str | None) -> Component:
    """One network of a pipeline from its own folder, its config checked."""
    config = _of_text(files.read_object(folder / "config.json"), class_name)
    stored = weight_files.open_component(folder, NETWORKS[name][1], variant)
    stored = with_text_model(layout.from_linen_tensors(stored), class_name)
    component = Component(class_name, config, stored)
    try:
        fields(component)  # an option that is not implemented should be known before any work
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    return component


def _of_text(config: dict[str, Any], class_name: str) -> dict[str, Any]:
    """For a text encoder out of the config of a whole CLIP, as transformers does, its half."""
    half = config.get("text_config")
    is_whole = class_name.startswith("CLIPText") and config.get("model_type") == "clip"
    return half if is_whole and isinstance(half, dict) else config


def without_strays(
    stored: Mapping[str, Tensor], abstract: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a network, and the names of those that PyTorch diffusers passes over, too.

    abstract: its parameter tree. Only what lies under no module of the network is passed over, and
    nothing while tensors lack: a layer too many or too few says that config.json is of another
    model, which `layout.load` reports.
    """
    modules = {re.sub(r"_\d+$", "", name) for name in abstract}
    own = {name: tensor for name, tensor in stored.items() if name.split(".")[0] in modules}
    if len(own) < len(jax.tree.leaves(abstract)):
        return dict(stored), []
    return own, [name for name in stored if name not in own]


def with_text_model(stored: dict[str, Tensor], class_name: str) -> dict[str, Tensor]:
    """Puts "text_model." before names, which transformers 5.6 and later leave out."""
    if not class_name.startswith("CLIPText") or any(n.startswith("text_model.") for n in stored):
        return stored
    return {f"text_model.{n}" if n.startswith(TEXT_PARTS) else n: t for n, t in stored.items()}


def _write(folder: Path, checkpoint: Checkpoint, dtype: Any) -> None:
    index = {"_diffusers_version": DIFFUSERS_VERSION, **checkpoint.index}
    index.update({name: [None, None] for name in model_index.OPTIONAL})
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
    text = files.dumps(checkpoint.scheduler, infinities=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    (folder / "model_index.json").write_text(files.dumps(index))
