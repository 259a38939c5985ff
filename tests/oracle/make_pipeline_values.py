# SPDX-License-Identifier: MIT
"""Runs PyTorch diffusers' pipelines on small checkpoints and stores the latents that they end with.

    python tests/oracle/make_pipeline_values.py       # writes tests/data/pipeline.npz

All noise is injected: the first one, the posterior's and every step's, so that stochastic samplers
compare as well. A case is one JSON object; `pipeline_cases.ours` runs the same in jaxgen.
"""

import contextlib
import functools
import json
import pathlib
import sys
import tempfile
import warnings

sys.path[:0] = [str(pathlib.Path(__file__).parents[i]) for i in (1, 2)]

import diffusers
import make_sampler_values
import numpy as np
import torch
from diffusers.models.autoencoders import vae as torch_vae
from diffusers.pipelines.stable_diffusion import (
    pipeline_stable_diffusion_img2img,
    pipeline_stable_diffusion_inpaint,
)
from diffusers.pipelines.stable_diffusion_xl import (
    pipeline_stable_diffusion_xl_img2img,
    pipeline_stable_diffusion_xl_inpaint,
)
from support import checkpoints, pipeline_cases

from jaxgen.weights import diffusers as diffusers_io

CLASSES = {
    ("sd", "text"): diffusers.StableDiffusionPipeline,
    ("sd", "image"): diffusers.StableDiffusionImg2ImgPipeline,
    ("sd", "inpaint"): diffusers.StableDiffusionInpaintPipeline,
    ("xl", "text"): diffusers.StableDiffusionXLPipeline,
    ("xl", "image"): diffusers.StableDiffusionXLImg2ImgPipeline,
    ("xl", "inpaint"): diffusers.StableDiffusionXLInpaintPipeline,
}
MODULES = (
    pipeline_stable_diffusion_img2img,
    pipeline_stable_diffusion_inpaint,
    pipeline_stable_diffusion_xl_img2img,
    pipeline_stable_diffusion_xl_inpaint,
)
TEXT_SETTINGS = ("negative_prompt", "guidance_scale", "guidance_rescale", "clip_skip")


@functools.cache
def components(kind):
    """The parts of a PyTorch pipeline, loaded by diffusers from a folder that jaxgen wrote."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = pathlib.Path(folder) / kind
        diffusers_io.write(folder, checkpoints.checkpoint(kind))
        task = "inpaint" if kind.startswith("inpaint") else "text"
        cls = CLASSES["xl" if "xl" in kind else "sd", task]
        options = {} if "xl" in kind else {"safety_checker": None}
        pipe = cls.from_pretrained(folder, **options)
        # diffusers' clip_skip asks for the layers under a name that transformers 5.6 took away
        encoder = pipe.text_encoder
        encoder.__dict__.setdefault("text_model", getattr(encoder, "text_model", encoder))
        return {**pipe.components}, {**pipe.scheduler.config}


def theirs(case, output="latent"):
    """Final latents [B, h, w, C] of a case in PyTorch, or its images [B, H, W, 3] in [0, 1]."""
    kind, task = case["kind"], case.get("task", "text")
    parts, scheduler_config = components(kind)
    cls = CLASSES["xl" if "xl" in kind else "sd", task]
    changes = {**case.get("scheduler", {})}
    if "spacing" in case:
        changes["timestep_spacing"] = case["spacing"]
    if "levels" in case:
        changes[f"use_{case['levels']}_sigmas"] = True
    given = {**scheduler_config, **changes}
    # diffusers drops values that it believes to be defaults
    defaulted = set(given.get("_use_default_values", ())) - changes.keys()
    given["_use_default_values"] = sorted(defaulted)
    parts = {**parts, "scheduler": make_sampler_values.scheduler(given, case.get("sampler"))}
    options = {"add_watermarker": False} if "xl" in kind else {"requires_safety_checker": False}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        pipe = cls(**parts, **options)
        pipe.set_progress_bar_config(disable=True)
        settings = {name: case[name] for name in TEXT_SETTINGS if name in case}
        with _injected(pipe, case):
            found = pipe(
                prompt=case["prompt"],
                num_inference_steps=case["num_steps"],
                output_type="latent" if output == "latent" else "np",
                eta=case.get("eta", 0.0),
                **settings,
                **_pictures(case),
            ).images
    return np.moveaxis(found.numpy(), 1, -1) if output == "latent" else found


def _pictures(case):
    """Latents, or image, mask and strength, as PyTorch's pipelines take them."""
    if case.get("task", "text") == "text":
        sizes = {
            name: tuple(case[name]) for name in ("original_size", "target_size") if name in case
        }
        if "crop" in case:
            sizes["crops_coords_top_left"] = tuple(case["crop"])
        return {"latents": _nchw(pipeline_cases.noise(case)), **sizes}
    given = {"image": _nchw(pipeline_cases.image(case)), "strength": case["strength"]}
    if case["task"] == "inpaint":
        size = {"height": checkpoints.SIZE, "width": checkpoints.SIZE}
        given |= {"mask_image": _nchw(pipeline_cases.mask(case)), **size}
    return given


@contextlib.contextmanager
def _injected(pipe, case):
    """Every draw of noise replaced by the case's own."""
    first = _nchw(pipeline_cases.noise(case))
    each_step = [_nchw(noise) for noise in pipeline_cases.step_noise(case)]
    posterior = [_nchw(noise) for noise in pipeline_cases.posterior_noise(case)]
    rows, step = iter(range(10**6)), pipe.scheduler.step
    current = [0]

    @functools.wraps(step)
    def counted(*args, **kwargs):
        current[0] = next(rows)
        return step(*args, **kwargs)

    def drawn(self, generator=None):
        return self.mean + self.std * posterior.pop(0)

    scheduler_module = sys.modules[type(pipe.scheduler).__module__]
    with contextlib.ExitStack() as stack:
        replace = functools.partial(_replaced, stack)
        for module in MODULES:
            replace(module, "randn_tensor", lambda *args, **kwargs: first)
        replace(scheduler_module, "randn_tensor", lambda *args, **kwargs: each_step[current[0]])
        replace(torch_vae.DiagonalGaussianDistribution, "sample", drawn)
        pipe.scheduler.step = counted
        yield


def _replaced(stack, owner, name, value):
    original = getattr(owner, name, None)
    setattr(owner, name, value)
    undo = (lambda: delattr(owner, name)) if original is None else None
    stack.callback(undo or (lambda: setattr(owner, name, original)))


def _nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def main() -> None:
    arrays = {"cases": np.frombuffer(json.dumps(pipeline_cases.STORED).encode(), np.uint8)}
    for i, case in enumerate(pipeline_cases.STORED):
        arrays[f"latent_{i}"] = theirs(case).astype(np.float32)
    arrays["image"] = np.round(theirs(pipeline_cases.STORED[0], "image") * 255).astype(np.uint8)
    path = pathlib.Path(__file__).parent.parent / "data" / "pipeline.npz"
    np.savez_compressed(path, **arrays)
    size = path.stat().st_size / 1024
    print(f"{len(pipeline_cases.STORED)} cases, {size:.0f} KiB, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
