# SPDX-License-Identifier: MIT
"""Single-file checkpoints in the names of CompVis' LDM and Stability's SGM: SD 1.x, 2.x and XL.

The file has weights only. The names say which model it is, the shapes give the configs, and what
neither tells (heads, scheduler, scaling factor) follows from the model. The tokenizer is not in it.
"""

from pathlib import Path

from jaxgen.weights import ldm_configs, ldm_names, tensors, tokenizer, weight_files
from jaxgen.weights.diffusers import Checkpoint, Component
from jaxgen.weights.tokenizer import Tokenizer

NEEDS_TOKENIZER = (
    "a single-file checkpoint carries no tokenizer: pass tokenizer= the folder with vocab.json and "
    "merges.txt of any Stable Diffusion (the subfolder tokenizer of a diffusers folder), or a Hub "
    "id such as openai/clip-vit-large-patch14"
)


def read(
    path: str | Path,
    tokenizer_folder: str | Path | None,
    prediction_type: str | None = None,
) -> Checkpoint:
    """The pipeline in a single file, in diffusers' names and configs, with no weight read yet.

    tokenizer_folder: see NEEDS_TOKENIZER. prediction_type: "epsilon" or "v_prediction"; None takes
    diffusers' guess for SD 2.x (v_prediction unless global_step is 875000), epsilon for the rest.
    """
    path = Path(path)
    if path.suffix in weight_files.UNSAFE:
        raise ValueError(f"{path} is not safetensors. {weight_files.CONVERT}")
    stored = tensors.open_file(path)
    kind = ldm_names.kind_of(stored, str(path))
    parts = ldm_names.rename(stored, kind)
    if tokenizer_folder is None:
        raise ValueError(NEEDS_TOKENIZER)
    components = {
        name: Component(class_name, ldm_configs.infer(class_name, parts[name], kind), parts[name])
        for name, class_name in ldm_configs.CLASSES[kind].items()
    }
    scheduler = ldm_configs.scheduler(kind, stored, prediction_type)
    if kind == "v2":
        size = 96 if scheduler["prediction_type"] == "v_prediction" else 64
        components["unet"].config["sample_size"] = size
    tokens = _tokenizers(Path(tokenizer_folder), kind)
    return Checkpoint(ldm_configs.INDEX[kind], components, tokens, scheduler)


def _tokenizers(folder: Path, kind: str) -> dict[str, Tokenizer]:
    """The tokenizers that a kind needs; all of CLIP's have one vocabulary and differ in padding."""
    found = {}
    for name, pad in ldm_configs.PADDING[kind].items():
        inner = next((f for f in (folder / name, folder / "tokenizer") if f.is_dir()), folder)
        found[name] = tokenizer.read(inner, {"pad_token": pad})
    return found
