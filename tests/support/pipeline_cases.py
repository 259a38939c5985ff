# SPDX-License-Identifier: MIT
"""Runs of whole pipelines that are compared with PyTorch diffusers: their inputs, and our side."""

import copy
import functools
import json

import numpy as np

from jaxgen.stable_diffusion import generate
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request
from support import checkpoints

PROMPTS = ["a photo of an astronaut riding a horse", "the mountain lake, sunset"]
NEGATIVES = ["", "the dog in a picture"]
LATENT = (checkpoints.SIZE // 2, checkpoints.SIZE // 2, 4)
BASE = {"kind": "sd1", "prompt": PROMPTS, "negative_prompt": NEGATIVES, "num_steps": 20,
        "guidance_scale": 3.0, "seed": 5}  # fmt: skip
XL = {"kind": "xl", "sampler": "euler", "negative_prompt": None}
IMAGE = {"task": "image", "strength": 0.6}
INPAINT = {"task": "inpaint", "strength": 0.75}

# each with something of its own
STORED = [
    BASE,
    BASE | {"sampler": "pndm", "num_steps": 7, "scheduler": {"skip_prk_steps": True}},
    BASE | {"sampler": "euler", "guidance_rescale": 0.7, "num_steps": 8},
    BASE | {"sampler": "dpmpp_2m", "num_steps": 8, "guidance_scale": 1.0},
    BASE | {"sampler": "unipc", "num_steps": 6, "clip_skip": 1},
    BASE | {"sampler": "euler_ancestral", "num_steps": 6},
    BASE | {"kind": "sd2", "sampler": "heun", "num_steps": 5},
    BASE | IMAGE | {"sampler": "euler", "num_steps": 8},
    BASE | INPAINT | {"sampler": "ddim", "num_steps": 8},
    BASE | INPAINT | {"sampler": "heun", "num_steps": 6},
    BASE | INPAINT | {"kind": "inpaint", "sampler": "euler", "num_steps": 6, "strength": 1.0},
    BASE | XL,
    BASE | XL | {"negative_prompt": NEGATIVES, "num_steps": 6, "clip_skip": 1, "crop": [3, 9],
                 "original_size": [1023, 767], "target_size": [40, 48]},
    BASE | XL | IMAGE | {"num_steps": 8},
    BASE | {"kind": "sd2", "sampler": "dpmpp_2m", "spacing": "trailing", "levels": "karras",
            "num_steps": 6},
    # as SD-Turbo is run
    BASE | {"sampler": "euler", "spacing": "trailing", "num_steps": 1, "guidance_scale": 1.0},
]  # fmt: skip


@functools.cache
def pipeline(kind):
    """The small pipeline of a kind, compiled once for all tests of a process."""
    return StableDiffusion(checkpoints.checkpoint(kind))


def ours(case, output="latent"):
    """What `make_pipeline_values.theirs` computes, in jaxgen."""
    pipe = _with_scheduler(case["kind"], json.dumps(case.get("scheduler", {})))
    names = ("prompt", "negative_prompt", "num_steps", "guidance_scale", "guidance_rescale",
             "sampler", "seed", "strength", "clip_skip", "eta", "spacing", "levels", "crop",
             "original_size", "target_size", "cache_interval", "pag_scale",
             "pag_layers")  # fmt: skip
    request = Request(
        **{name: case[name] for name in names if name in case},
        image=image(case) if case.get("task") else None,
        mask=mask(case) if case.get("task") == "inpaint" else None,
        latents=noise(case),
    )
    inputs = pipe.inputs(request)
    start, end = int(inputs.table.start_row), int(inputs.table.num_rows)
    fresh = np.zeros((256, *noise(case).shape), np.float32)
    fresh[start:end] = step_noise(case)[: end - start]
    final = pipe.latents(inputs._replace(step_noise=fresh))
    return np.asarray(final) if output == "latent" else pipe.decode(final)


@functools.cache
def _with_scheduler(kind, changes):
    """The pipeline of a kind with keys of its scheduler config replaced; programs are shared."""
    pipe = copy.copy(pipeline(kind))
    pipe.scheduler = {**pipe.scheduler, **json.loads(changes)}
    return pipe


def noise(case):
    return _unit(1, len(case["prompt"]), *LATENT)


def step_noise(case):
    rows = 2 * case["num_steps"] + 10  # PNDM starts with nine more than steps
    return _unit(2, rows, len(case["prompt"]), *LATENT)


def posterior_noise(case):
    """The noise that jaxgen draws for the posteriors, in the order in which diffusers asks."""
    first, second = (
        np.asarray(generate.posterior_noise(case["seed"] + np.arange(2), LATENT, purpose))
        for purpose in ("image", "masked_image")
    )
    only_masked = case["kind"].startswith("inpaint") and case.get("strength") == 1
    return [second] if only_masked else [first, second]


def image(case):
    """Smooth pictures in [-1, 1], [B, H, W, 3]."""
    size = checkpoints.SIZE
    waves = np.sin(np.arange(size) * 0.3)[:, None] * np.cos(np.arange(size) * 0.2)
    shades = np.linspace(0.3, 1, 3 * len(case["prompt"])).reshape(-1, 1, 1, 3)
    return (waves[None, :, :, None] * shades).astype(np.float32)


def mask(case):
    """One in a corner of odd extent, so that the grid of latents cuts through it."""
    size = checkpoints.SIZE
    made = np.zeros((len(case["prompt"]), size, size, 1), np.float32)
    made[:, : size // 2 + 3, 5:] = 1
    return made


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def _unit(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
