# SPDX-License-Identifier: MIT
"""The readers of what is added to a model, adapters and ControlNets, and of its single files."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from support import adapters, checkpoints, controlnets, ldm_shapes

from jaxgen import files
from jaxgen.adapters import controlnet_file, embedding_file, merge
from jaxgen.stable_diffusion import loading
from jaxgen.weights import layout

FILE = "part.safetensors"
RANK = 2


@functools.cache
def _params() -> dict[str, Any]:
    """The parameters of the small model that adapters are merged into."""
    checkpoint = checkpoints.checkpoint("sd1")
    networks = loading.networks(checkpoint)
    return {
        name: layout.load(checkpoint.components[name].tensors, loading.shapes(module))
        for name, module in (("unet", networks.unet), *networks.encoders.items())
    }


def make_adapter(folder: Path) -> None:
    """Writes a file with one module of every kind of adapter, and PEFT's configuration."""
    shapes = {name: leaf.shape for name, leaf in _tensors().items()}
    linear = [name for name, shape in shapes.items() if len(shape) == 2 and "attn" in name]
    (conv,) = [name for name in shapes if name == f"{adapters.RESNET}.weight"]
    values = {}
    kinds = ("lora", "loha", "lokr", "dora", "locon")
    for name, kind in zip([*linear[:4], conv], kinds, strict=True):
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        values |= {f"{module}.{end}": x for end, x in _of_kind(kind, shapes[name]).items()}
    metadata = {"ss_base_model_version": "sd_v1", "modelspec.title": "a test"}
    adapters.write(folder / FILE, values, metadata)
    config = {"r": RANK, "lora_alpha": 1, "rank_pattern": {}, "alpha_pattern": {"attn1": 2}}
    (folder / "adapter_config.json").write_text(files.dumps(config))


def _tensors() -> dict[str, Any]:
    return layout.to_tensors(_params()["unet"], conv_1x1=())


def _of_kind(kind: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The tensors of one module by the ends of their names."""
    out, into = shape[:2]
    up, down, alpha = np.ones((out, RANK)), np.ones((RANK, into)), np.ones(())
    match kind:
        case "lora":
            return {"lora_up.weight": up, "lora_down.weight": down, "alpha": alpha}
        case "dora":
            magnitude = np.ones((out, 1))
            return {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": magnitude}
        case "loha":
            return {f"hada_w{i}_{end}": x for i in (1, 2) for end, x in (("a", up), ("b", down))}
        case "lokr":
            return {"lokr_w1": np.ones((2, 2)), "lokr_w2": np.ones((out // 2, into // 2))}
        case _:
            core = {"lora_mid.weight": np.ones((RANK, RANK, *shape[2:]))}
            ends = ("lora_up.weight", up), ("lora_down.weight", down)
            return core | {end: x[..., None, None] for end, x in ends} | {"alpha": alpha}


def read_adapter(folder: Path) -> None:
    """Merges the file; what is accepted has finite parameters of the model's shapes."""
    merged = merge.merge(_params(), merge.open_all(_params(), [(folder / FILE, 0.5)]))["unet"]
    for one, other in zip(
        layout.to_tensors(merged, conv_1x1=()).values(), _tensors().values(), strict=True
    ):
        assert one.shape == other.shape
        assert np.isfinite(one.read()).all()


def make_controlnet(folder: Path) -> None:
    """Writes a ControlNet in diffusers' layout, and one in the names of its authors."""
    component = controlnets.component("sd1")
    controlnets.write(folder / "net", component)
    component = controlnets.component(
        "sd1", block_out_channels=[32, 64], norm_num_groups=32, attention_head_dim=8
    )
    names = controlnets.ldm_names(component)
    arrays = {names[name]: np.asarray(x.read()) for name, x in component.tensors.items()}
    safetensors.numpy.save_file(arrays, folder / FILE)


def read_controlnet(folder: Path) -> None:
    """Opens both, and builds the networks whose parameters they must be."""
    for path in (folder / "net", folder / FILE):
        component = controlnet_file.open_controlnet(path)
        with files.one_error(path):
            layout.load(component.tensors, controlnets.shapes(component))


def make_single_file(folder: Path, kind: ldm_shapes.Ldm) -> None:
    """Writes the single file of a kind of model."""
    rng = np.random.default_rng(0)
    shapes = ldm_shapes.shapes(kind)
    arrays = {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")


def make_embedding(folder: Path) -> None:
    """Writes the vectors of a new word."""
    safetensors.numpy.save_file({"emb_params": np.ones((3, 16), np.float32)}, folder / FILE)


def read_embedding(folder: Path) -> None:
    """Reads the word; what is accepted has finite vectors of the encoder's width."""
    (word,) = embedding_file.read(folder / FILE, {"text_encoder": 16})
    assert all(x.shape[1] == 16 and np.isfinite(x).all() for x in word.vectors.values())
