# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""Whole pipelines beside PyTorch's, on small checkpoints that jaxgen wrote and diffusers loaded.

Both get the same noise everywhere. Each test prints the largest relative error of final latents.
"""

import itertools

import numpy as np
import pytest
from support.pipeline_cases import BASE, IMAGE, INPAINT, NEGATIVES, XL, noise, ours, relative_error

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from make_pipeline_values import theirs

pytestmark = pytest.mark.oracle
diffusers.utils.logging.set_verbosity_error()

TOLERANCE = 1e-3
FEW = BASE | {"num_steps": 8}  # more than any order; test_samplers_diffusers has up to 50
DETERMINISTIC = (
    "ddim", "pndm", "lms", "euler", "heun", "dpm2", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "deis",
    "unipc",
)  # fmt: skip
STOCHASTIC = ("ddpm", "euler_ancestral", "dpm2_ancestral", "dpmpp_2m_sde", "lcm", "tcd")
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# what diffusers raises for a combination that it lacks: by intent, or by falling over
REFUSALS = (ValueError, NotImplementedError, UnboundLocalError)


def compare(*cases):
    """Asserts equality where PyTorch accepts the case; returns how many it accepted."""
    errors = []
    for case in cases:
        try:
            expected = theirs(case)
        except REFUSALS:
            continue
        if not np.isfinite(expected).all():
            continue
        found = ours(case)
        assert found.shape == expected.shape
        errors.append(relative_error(found, expected))
        assert errors[-1] < TOLERANCE, (errors[-1], case)
        assert relative_error(noise(case), expected) > 0.1
    print(f"{len(errors)} of {len(cases)} cases, error at most {max(errors):.1e}")
    return len(errors)


def grid(sampler, **options):
    return [
        FEW
        | options
        | {
            "sampler": sampler,
            "scheduler": {"timestep_spacing": spacing, "prediction_type": prediction},
        }
        for spacing, prediction in itertools.product(SPACINGS, PREDICTIONS)
    ]


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_text_to_image_with_every_sampler_spacing_and_prediction(sampler):
    accepted = compare(*grid(sampler))
    assert accepted >= 6  # the k-diffusion family and PNDM refuse to predict the sample


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_spacing_and_levels_start_from_the_checkpoints_own_schedule(sampler):
    cases = [
        BASE | {"kind": kind, "sampler": sampler, "num_steps": 4, "spacing": spacing} | levels
        for kind, spacing in itertools.product(("sd1", "sd2"), SPACINGS)
        for levels in ({}, {"levels": "karras"}, {"levels": "exponential"}, {"levels": "beta"})
    ]
    assert compare(*cases) == len(cases)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_with_the_same_noise(sampler):
    # diffusers' pipelines pass eta = 0 unless told otherwise; its TCD scheduler alone means 0.3
    eta = {"eta": 0.3} if sampler in ("ddim", "tcd") else {}  # the others have none
    assert compare(*grid(sampler, **eta)[::2]) >= 3


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpmpp_2m", "unipc", "lms"])
def test_image_to_image(sampler):
    cases = [
        FEW | IMAGE | {"kind": kind, "sampler": sampler, "strength": strength}
        for kind, strength in (("sd1", 0.3), ("sd1", 0.8), ("sd2", 1.0))
    ]
    assert compare(*cases) == 3


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_inpainting_with_four_and_nine_channels(sampler):
    cases = [
        FEW | INPAINT | {"kind": kind, "sampler": sampler, "strength": strength}
        for kind, strength in itertools.product(("sd1", "inpaint"), (0.5, 1.0))
    ]
    assert compare(*cases) == 4


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "unipc"])
def test_xl_from_text_and_from_an_image(sampler):
    # where a config leaves it open, diffusers' DDIM clips latents like pixels; jaxgen does not
    base = FEW | XL | {"sampler": sampler, "scheduler": {"clip_sample": False}}
    cases = [
        base,
        base | {"negative_prompt": NEGATIVES, "guidance_rescale": 0.7},
        base | {"guidance_scale": 1.0},
        base | {"original_size": [1023, 767], "crop": [3, 9], "target_size": [40, 48]},
        base | IMAGE,
    ]
    assert compare(*cases) == 5


def test_clip_skip_and_the_checkpoints_own_sampler():
    cases = [
        FEW | {"clip_skip": 2},
        FEW | {"kind": "sd2", "clip_skip": 1},
        FEW | XL | {"sampler": None, "clip_skip": 1},
    ]
    assert compare(*cases) == 3


def test_zero_terminal_snr_and_respaced_noise_levels():
    cases = [
        FEW | {"sampler": "ddim", "scheduler": {"rescale_betas_zero_snr": True,
                "prediction_type": "v_prediction", "timestep_spacing": "trailing"}},
        FEW | {"sampler": "euler", "scheduler": {"use_karras_sigmas": True}},
        FEW | {"sampler": "dpmpp_2m", "scheduler": {"use_karras_sigmas": True}},
        FEW | {"sampler": "dpmpp_2m", "scheduler": {"use_exponential_sigmas": True}},
    ]  # fmt: skip
    assert compare(*cases) == 4


def test_pictures_differ_by_one_level_at_most():
    for case in (BASE, BASE | XL, BASE | INPAINT):
        expected = np.round(theirs(case, "image") * 255)
        assert np.abs(ours(case, "image") - expected).max() <= 1


def test_inpainting_with_xl():
    """XL beside nine channels, as its inpainting checkpoint has them, and by blending."""
    few = BASE | XL | INPAINT | {"num_steps": 4}
    assert compare(few | {"kind": "inpaint_xl", "strength": 1.0}, few) == 2
