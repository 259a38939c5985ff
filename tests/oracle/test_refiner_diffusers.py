# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""XL hands its latents over to its refiner, beside diffusers."""

import warnings

import numpy as np
import pytest
from support import checkpoints, pipeline_cases

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers as diffusers_io

pytestmark = pytest.mark.oracle
diffusers.utils.logging.set_verbosity_error()

CALL = {"num_steps": 8, "guidance_scale": 3.0, "output": "latent"}
TEXTS = {"prompt": pipeline_cases.PROMPTS, "negative_prompt": pipeline_cases.NEGATIVES}
SHARE = 0.6


def theirs(folder, kind, **settings):
    cls = getattr(diffusers, checkpoints.CLASSES[kind])
    diffusers_io.write(folder, checkpoints.checkpoint(kind))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        pipe = cls.from_pretrained(folder, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        found = pipe(
            **TEXTS, num_inference_steps=8, guidance_scale=3.0, output_type="latent", **settings
        ).images
    return np.moveaxis(found.numpy(), 1, -1)


def as_torch(latents):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(latents), -1, 1)))


def test_base_and_refiner_meet_as_in_diffusers(tmp_path):
    noise = np.random.default_rng(0).standard_normal((2, 16, 16, 4)).astype(np.float32)
    base = theirs(tmp_path / "xl", "xl", latents=as_torch(noise), denoising_end=SHARE)
    found = pipeline_cases.pipeline("xl")(latents=noise, denoising_end=SHARE, **TEXTS, **CALL)
    assert pipeline_cases.relative_error(found, base) < 1e-5

    size = {"original_size": (32, 32), "target_size": (32, 32)}
    refined = theirs(
        tmp_path / "refiner", "refiner", image=as_torch(base), denoising_start=SHARE, **size
    )
    refiner = StableDiffusion.from_pretrained(tmp_path / "refiner")
    found = refiner(latents=base, denoising_start=SHARE, **TEXTS, **CALL)
    assert pipeline_cases.relative_error(found, refined) < 1e-5
    assert pipeline_cases.relative_error(found, base) > 0.1
