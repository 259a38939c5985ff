# SPDX-License-Identifier: MIT
"""Small ControlNets for the small checkpoints, their weights a function of their names."""

import re

import numpy as np

from jaxgen import files
from jaxgen.adapters import ldm_stems
from jaxgen.nn.stable_diffusion.controlnet import ControlNetModel
from jaxgen.stable_diffusion import loading
from jaxgen.weights import diffusers, weight_files
from support import checkpoints, networks, pipeline_cases

# two runs whose end diffusers has stored: `tests/oracle/make_controlnet_values.py`
STORED = [
    pipeline_cases.BASE
    | {"sampler": "ddim", "num_steps": 6, "control_scale": 0.7, "control_start": 0.2,
       "control_end": 0.8},
    pipeline_cases.BASE | {"sampler": "ddim", "num_steps": 6, "guess_mode": True},
]  # fmt: skip
SETTINGS = {  # of a case, and what diffusers calls them
    "control_scale": "controlnet_conditioning_scale",
    "control_start": "control_guidance_start",
    "control_end": "control_guidance_end",
    "guess_mode": "guess_mode",
}
UNET_ONLY = ("sample_size", "up_block_types")
STEM = "diffusion_pytorch_model"


def component(kind, **changes):
    """A ControlNet for the UNet of a kind; no weight is zero."""
    config = {k: v for k, v in checkpoints.UNETS[kind].items() if k not in UNET_ONLY}
    config |= {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [4, 8]}
    empty = diffusers.Component("ControlNetModel", config | changes, {})
    return diffusers.with_params(empty, networks.weights_by_path(shapes(empty)))


def hints(count):
    """Pictures in [0, 1] for each ControlNet, [B, H, W, 3]."""
    size, b = checkpoints.SIZE, len(pipeline_cases.BASE["prompt"])
    return [
        np.random.default_rng(k).uniform(0, 1, (b, size, size, 3)).astype(np.float32)
        for k in range(count)
    ]


def ours(case, pipe):
    """What diffusers computes for a case, by a pipeline with ControlNets."""
    names = ("prompt", "negative_prompt", "num_steps", "guidance_scale", "sampler", "seed",
             "strength", *SETTINGS)  # fmt: skip
    images = [2 * image - 1 for image in hints(len(pipe.networks.controlnets))]
    return pipe(
        **{name: case[name] for name in names if name in case},
        image=pipeline_cases.image(case) if case.get("task") else None,
        mask=pipeline_cases.mask(case) if case.get("task") == "inpaint" else None,
        latents=pipeline_cases.noise(case),
        control_image=images[0] if len(images) == 1 else images,
        output="latent",
    )


def shapes(component):
    return loading.shapes(ControlNetModel(**diffusers.fields(component)))


def write(folder, component):
    """The folder of a ControlNet in diffusers' layout."""
    folder.mkdir()
    (folder / "config.json").write_text(files.dumps(component.config))
    weight_files.write_component(folder, STEM, component.tensors, None)
    return folder


def ldm_names(component):
    """{diffusers' name of a tensor: its name in the files of the paper's authors}."""
    modules = [name.rpartition(".")[0] for name in component.tensors]
    names = ldm_stems.of_unet(modules)
    result = {}
    for tensor in component.tensors:
        module, _, leaf = tensor.rpartition(".")
        hint = re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", module)
        zero = re.fullmatch(r"controlnet_down_blocks\.(\d+)", module)
        if hint:
            name = f"input_hint_block.{2 * int(hint[1]) + 2}"
        elif zero:
            name = f"zero_convs.{zero[1]}.0"
        else:
            name = {
                "controlnet_cond_embedding.conv_in": "input_hint_block.0",
                "controlnet_cond_embedding.conv_out": "input_hint_block.14",
                "controlnet_mid_block": "middle_block_out.0",
            }.get(module) or names[module]
        result[tensor] = f"control_model.{name}.{leaf}"
    return result
