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

from jaxgen.diffusion import config

pytestmark = pytest.mark.oracle
diffusers.utils.logging.set_verbosity_error()

TOLERANCE = 1e-3
FEW = BASE | {"num_steps": 6}  # more than any order; test_samplers_diffusers has up to 50
SAMPLERS = sorted(config.SAMPLERS)
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


def each_once(sampler, **options):
    """Cases of a sampler with each spacing and each prediction; other samplers pair them otherwise.

    test_samplers_diffusers has all pairs for each sampler.
    """
    shift = SAMPLERS.index(sampler)
    return [
        FEW
        | options
        | {
            "sampler": sampler,
            "scheduler": {
                "timestep_spacing": spacing,
                "prediction_type": PREDICTIONS[(i + shift) % len(PREDICTIONS)],
            },
        }
        for i, spacing in enumerate(SPACINGS)
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_text_to_image_with_every_sampler_spacing_and_prediction(sampler):
    """Both sides get the same noise, which stochastic samplers use."""
    # diffusers' pipelines pass eta = 0 unless told otherwise; its TCD scheduler alone means 0.3
    eta = {"eta": 0.3} if sampler == "tcd" else {}
    accepted = compare(*each_once(sampler, **eta))
    assert accepted >= 2  # the k-diffusion family and PNDM refuse to predict the sample


LEVELS = (None, "karras", "exponential", "beta")


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_spacing_and_levels_start_from_the_checkpoints_own_schedule(level):
    """All pairs of a sampler, its levels, their spacing and a kind of model, if not all triples."""
    own = {"levels": LEVELS[level]} if LEVELS[level] else {}
    cases = [
        BASE
        | {
            "kind": ("sd1", "sd2")[(i + level // 2) % 2],
            "sampler": sampler,
            "num_steps": 4,
            "spacing": SPACINGS[(i + level) % len(SPACINGS)],
        }
        | own
        for i, sampler in enumerate(("euler", "heun", "dpmpp_2m", "unipc"))
    ]
    assert compare(*cases) == len(cases)


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
