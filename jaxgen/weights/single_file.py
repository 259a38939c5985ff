# SPDX-License-Identifier: MIT
"""Single-file checkpoints in the names of CompVis' LDM and Stability's SGM: SD 1.x, 2.x, XL and
its refiner, Playground 2.5.

The file has weights only. The UNet says which model it is, the shapes give the configs, and what
neither tells (heads, scheduler, scaling factor) follows from the model. The tokenizer is not in it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from jaxgen import files
from jaxgen.weights import (
    diffusers,
    ldm_configs,
    ldm_kinds,
    ldm_names,
    tensors,
    tokenizer,
    weight_files,
)
from jaxgen.weights.diffusers import Checkpoint, Component
from jaxgen.weights.tokenizer import Tokenizer

# of weights of 8 or 4 bits
SCALES = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".absmax", ".SCB")
TITLES = ("modelspec.title", "ss_output_name", "ss_sd_model_name")  # the first that says something


def read(
    path: str | Path,
    tokenizer_folder: str | Path | Callable[[], Path],
    prediction_type: str | None = None,
    vae: Component | None = None,
) -> Checkpoint:
    """The pipeline in a single file, in diffusers' names and configs, with no weight read yet.

    tokenizer_folder: vocab.json and merges.txt, there or in subfolders tokenizer and tokenizer_2;
    or a function that gives the folder, called once the file has proved a checkpoint.
    prediction_type: "epsilon", "v_prediction" or "sample"; None takes diffusers' guess for SD 2.x
    (v_prediction unless global_step is 875000 or the model inpaints), epsilon for the rest. vae: an
    autoencoder to take instead of the file's own, which may lack.
    """
    path = Path(path)
    with files.one_error(path):
        weight_files.check_ending(path)
        return _read(path, tokenizer_folder, prediction_type, vae)


def _read(
    path: Path,
    folder: str | Path | Callable[[], Path],
    prediction_type: str | None,
    vae: Component | None,
) -> Checkpoint:
    stored, prefix = ldm_kinds.without_prefix(tensors.open_file(path))
    _check_unscaled(stored)
    kind = ldm_kinds.kind_of(stored, str(path), has_vae=vae is not None)
    parts, strays = ldm_names.rename(stored, kind)
    inpainting = ldm_kinds.is_inpainting(stored)
    components = {
        name: Component(class_name, ldm_configs.infer(class_name, parts[name], kind), parts[name])
        for name, class_name in ldm_configs.CLASSES[kind].items()
        if not (vae and name == "vae")
    }
    if vae:
        components["vae"] = diffusers.with_scaling(vae, ldm_configs.SCALING[kind])
    scheduler = ldm_configs.scheduler(kind, stored, prediction_type, inpainting)
    if kind == "v2":
        size = 96 if scheduler["prediction_type"] == "v_prediction" else 64
        components["unet"].config["sample_size"] = size
    folder = Path(folder() if callable(folder) else folder)
    tokens = _tokenizers(folder, kind)
    index = ldm_configs.index(kind, inpainting) | _title(path)
    notes = ldm_kinds.stray_notes(strays)
    if vae:
        notes += [*vae.notes, *diffusers.config_notes("vae", vae)]
    if prefix:
        notes.append(f"took names without the {files.printable(prefix, 80)!r} before them")
    return Checkpoint(index, components, tokens, scheduler, tuple(notes))


def _check_unscaled(names: Iterable[str]) -> None:
    """Raises ValueError for 8-bit weights that have scales, which loading would leave out."""
    scales = [name for name in names if name.endswith(SCALES) or "scaled_fp8" in name]
    if scales:
        raise ValueError(
            f"its weights have scales ({files.printable(scales[0], 80)}), which is not "
            "implemented; fetch the float16 or the plain fp8 file"
        )


def _title(path: Path) -> dict[str, str]:
    """What trainers write into a file of its name, which a renamed file does not tell."""
    metadata = tensors.metadata(path)
    titles = [metadata[key] for key in TITLES if metadata.get(key, "").strip()]
    return {"_name_or_path": titles[0]} if titles else {}


def _tokenizers(folder: Path, kind: str) -> dict[str, Tokenizer]:
    """The tokenizers that a kind needs; all of CLIP's have one vocabulary and differ in padding."""
    tokens = {}
    for name, pad in ldm_configs.PADDING[kind].items():
        inner = next((f for f in (folder / name, folder / "tokenizer") if f.is_dir()), folder)
        tokens[name] = tokenizer.read(inner, {"pad_token": pad})
    return tokens
