# SPDX-License-Identifier: MIT
"""An autoencoder by itself, to be used instead of a checkpoint's own: a folder or a single file.

Single files have their tensors in the names of LDM or of diffusers, alone or under a prefix, and
no config. How latents are scaled then follows from the checkpoint that the autoencoder is put into.
"""

from collections.abc import Mapping
from pathlib import Path

from jaxgen import files
from jaxgen.weights import diffusers, ldm_configs, ldm_names, tensors, weight_files
from jaxgen.weights.diffusers import Component
from jaxgen.weights.tensors import Tensor

CLASS = "AutoencoderKL"


def read(path: str | Path, variant: str | None = None) -> Component:
    """The autoencoder in its folder, in a pipeline's folder, or in a single file.

    Raises ValueError when there is none in it.
    """
    path = Path(path)
    with files.one_error(path):
        if not path.is_dir():
            return _from_file(path)
        folder = path if (path / "config.json").is_file() else path / "vae"
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{path} holds no autoencoder: neither it nor its folder vae has a config.json"
            )
        own = files.read_object(folder / "config.json").get("_class_name", CLASS)
        if own != CLASS:
            raise ValueError(
                f"{folder} holds a {files.printable(own, 80)}; jaxgen implements {CLASS}"
            )
        component = diffusers.read_component(folder, "vae", CLASS, variant)
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
    prefix = next((p for p in ldm_names.VAE if any(n.startswith(p) for n in stored)), "")
    part = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
    if not any(name.startswith("decoder.") for name in part):
        raise ValueError(f"{path} holds no autoencoder: none of its tensors is of a decoder")
    part = _in_diffusers_names(part)
    return Component(CLASS, ldm_configs.infer(CLASS, part, None), part)


def _in_diffusers_names(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith("decoder.up_blocks.") for name in part):
        return dict(part)
    renamed, _ = ldm_names.rename_part(part, ldm_names.vae_names(part))
    return {name: ldm_names.as_linear(name, tensor) for name, tensor in renamed.items()}
