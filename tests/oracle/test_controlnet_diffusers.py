# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""ControlNets beside diffusers', on small ones that it wrote: alone, two at once, XL, windows."""

import functools
import tempfile

import numpy as np
import pytest
from support import checkpoints, controlnets, pipeline_cases
from support.controlnets import SETTINGS, hints
from support.pipeline_cases import BASE, IMAGE, INPAINT, XL, relative_error

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import make_pipeline_values
from diffusers.pipelines.controlnet import (
    pipeline_controlnet_img2img,
    pipeline_controlnet_inpaint,
)

from jaxgen.adapters import controlnet_file
from jaxgen.stable_diffusion.pipeline import StableDiffusion

pytestmark = pytest.mark.oracle
diffusers.utils.logging.set_verbosity_error()

CLASSES = {
    ("sd", "text"): diffusers.StableDiffusionControlNetPipeline,
    ("sd", "image"): diffusers.StableDiffusionControlNetImg2ImgPipeline,
    ("sd", "inpaint"): diffusers.StableDiffusionControlNetInpaintPipeline,
    ("xl", "text"): diffusers.StableDiffusionXLControlNetPipeline,
}
MODULES = (
    *make_pipeline_values.MODULES, pipeline_controlnet_img2img, pipeline_controlnet_inpaint,
)  # fmt: skip
UNET_ONLY = ("_class_name", "sample_size", "up_block_types")
SD = BASE | {"sampler": "ddim", "num_steps": 6}


@functools.cache
def net(kind, seed, changes):
    """A ControlNet of random weights, zero convolutions too, as diffusers computes it."""
    config = {k: v for k, v in checkpoints.UNETS[kind].items() if k not in UNET_ONLY}
    config |= {"conditioning_embedding_out_channels": (4, 8), **dict(changes)}
    torch.manual_seed(seed)
    result = diffusers.ControlNetModel(**config)
    for parameter in result.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return result.eval()


def theirs(case, nets, monkeypatch):
    parts, config = make_pipeline_values.components(case["kind"])
    several = nets[0] if len(nets) == 1 else nets
    images = [torch.from_numpy(np.moveaxis(image, -1, 1).copy()) for image in hints(len(nets))]
    own = {name: case[key] for key, name in SETTINGS.items() if key in case}
    pictures = make_pipeline_values._pictures

    def with_control(case):
        name = "image" if case.get("task", "text") == "text" else "control_image"
        return {**pictures(case), name: images[0] if len(nets) == 1 else images, **own}

    with monkeypatch.context() as patch:
        patch.setattr(make_pipeline_values, "_pictures", with_control)
        patch.setattr(make_pipeline_values, "CLASSES", CLASSES)
        patch.setattr(make_pipeline_values, "MODULES", MODULES)  # whose noise is replaced
        patch.setattr(
            make_pipeline_values, "components", lambda _: ({**parts, "controlnet": several}, config)
        )
        return make_pipeline_values.theirs(case)


@functools.cache
def pipeline(kind, nets):
    """The small pipeline of a kind with ControlNets, from folders that diffusers wrote."""
    with tempfile.TemporaryDirectory() as folder:
        components = []
        for k, one in enumerate(nets):
            one.save_pretrained(f"{folder}/{k}")
            components.append(controlnet_file.open_controlnet(f"{folder}/{k}"))
        return StableDiffusion(checkpoints.checkpoint(kind), controlnets=components)


def ours(case, nets):
    return controlnets.ours(case, pipeline(case["kind"], tuple(nets)))


CASES = {
    "alone": (SD, [("sd1", 0, {})]),
    "bgr, from step 2 to 6": (
        SD | {"control_scale": 0.7, "control_start": 0.25, "control_end": 0.75, "num_steps": 8},
        [("sd1", 0, {"controlnet_conditioning_channel_order": "bgr"})],
    ),
    "guess mode": (SD | {"guess_mode": True}, [("sd1", 0, {})]),
    "pooled": (SD, [("sd1", 0, {"global_pool_conditions": True})]),
    "two, with heun": (
        SD | {"sampler": "heun", "num_steps": 8, "control_scale": [0.8, 0.5],
              "control_start": [0.0, 0.1], "control_end": [0.6, 1.0]},
        [("sd1", 0, {}), ("sd1", 1, {})],
    ),
    "sd2": (SD | {"kind": "sd2"}, [("sd2", 0, {})]),
    "xl": (BASE | XL | {"num_steps": 6}, [("xl", 0, {})]),
    "from an image": (SD | IMAGE | {"num_steps": 8, "control_scale": 0.9}, [("sd1", 0, {})]),
    "inpainting": (SD | INPAINT | {"num_steps": 8, "control_scale": 0.9}, [("sd1", 0, {})]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_latents_are_diffusers(name, monkeypatch):
    case, described = CASES[name]
    nets = [net(kind, seed, tuple(changes.items())) for kind, seed, changes in described]
    expected = theirs(case, nets, monkeypatch)
    assert relative_error(ours(case, nets), expected) < 1e-3
    assert relative_error(pipeline_cases.ours(case), expected) > 0.01
