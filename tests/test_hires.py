# SPDX-License-Identifier: MIT
"""Two passes as one call are the two calls; latents begin a run as their picture does."""

import jax
import numpy as np
import pytest
from PIL import Image
from support import checkpoints, controlnets, pipeline_cases

from jaxgen.diffusion import config
from jaxgen.stable_diffusion import hires, loading
from jaxgen.stable_diffusion.hires import Hires
from jaxgen.stable_diffusion.request import Request, completed

CALL = {"prompt": "a cat", "num_steps": 4, "sampler": "euler", "seed": 3}
SMALL = {"height": 16, "width": 16}
LARGE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def pipe():
    return pipeline_cases.pipeline("sd1")


def test_latents_are_enlarged_and_drawn_from(pipe):
    steps = []
    once = pipe(
        hires=Hires(2, 0.5), output="latent", on_step=lambda *step: steps.append(step[:2]),
        **CALL, **SMALL,
    )  # fmt: skip
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 2)]
    small = pipe(output="latent", **CALL, **SMALL)
    large = jax.image.resize(small, (1, 16, 16, 4), "linear")
    twice = pipe(image_latents=large, strength=0.5, output="latent", **CALL)
    np.testing.assert_array_equal(once, twice)


def test_pixels_are_enlarged_and_drawn_from(pipe):
    once = pipe(hires=Hires(2.0, 0.5, "pixels"), **CALL, **SMALL)
    small = Image.fromarray(pipe(**CALL, **SMALL)[0])
    twice = pipe(image=small.resize((32, 32), Image.Resampling.LANCZOS), strength=0.5, **CALL)
    np.testing.assert_array_equal(once, twice)


def test_a_mask_is_enlarged_with_the_picture(pipe):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 6:] = 255
    call = CALL | {"output": "latent", "image": image, "mask": mask}
    once = pipe(strength=0.9, hires=Hires(2, 0.5), **call)
    small = pipe(strength=0.9, **call)
    large = jax.image.resize(small, (1, 16, 16, 4), "linear")
    larger = mask.repeat(2, axis=0).repeat(2, axis=1)
    twice = pipe(image_latents=large, mask=larger, strength=0.5, output="latent", **CALL)
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_allclose(once[:, :, :6], large[:, :, :6], atol=1e-5)  # what is kept
    assert np.abs(once[:, :, 6:] - large[:, :, 6:]).max() > 1e-2


def test_what_controlnets_follow_is_enlarged_with_the_picture():
    net, checkpoint = controlnets.component("sd1"), checkpoints.checkpoint("sd1")
    hints = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    large = [Image.fromarray(x).resize((32, 32), Image.Resampling.LANCZOS) for x in hints]
    for count in (1, 2):
        networks = loading.networks(checkpoint, controlnets=[net] * count)
        image = hints[0] if count == 1 else list(hints)
        request = completed(Request(control_image=image, hires=Hires(2, 0.5), **CALL))
        first, second = hires.passes(request, networks, checkpoint.scheduler)
        np.testing.assert_array_equal(first.control_image, image)
        enlarged = [second.control_image] if count == 1 else second.control_image
        for own, expected in zip(enlarged, large, strict=False):
            np.testing.assert_array_equal(own[0], np.asarray(expected))


def test_a_factor_is_rounded_to_whole_pixels():
    pipe = pipeline_cases.pipeline("sd1")
    request = completed(Request(**CALL | {"height": 100, "width": 100, "hires": 1.1}))
    _, second = hires.passes(request, pipe.networks, pipe.scheduler)
    assert 100 * 1.1 > 110  # as floats
    assert (second.height, second.width) == (110, 110)


def test_an_inpainting_model_takes_pixels():
    pipe = pipeline_cases.pipeline("inpaint")
    call = CALL | {"image": np.zeros((16, 16, 3), np.uint8), "mask": np.ones((16, 16), np.uint8)}
    with pytest.raises(ValueError, match=r"so latents do not do in its place.*upscale='pixels'"):
        pipe(hires=Hires(2, 0.5), **call)
    request = completed(Request(hires=Hires(2, 0.5, "pixels"), **call))
    first, second = hires.passes(request, pipe.networks, pipe.scheduler)
    assert (first.image.shape, second.image.shape) == ((16, 16, 3), (1, 32, 32, 3))
    assert second.mask.shape == (1, 32, 32, 1)


def test_latents_given_back_unchanged_are_the_picture(pipe):
    latents = pipe(output="latent", **CALL, **LARGE)
    again = pipe(image_latents=latents, strength=0.0, output="latent", **CALL)
    np.testing.assert_allclose(again, latents, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hires": "2"}, "give a factor such as 2, or Hires"),
        ({"hires": Hires(2, 0)}, "strength of hires is 0"),
        ({"hires": Hires(2, 0.6, "cubic")}, "upscale one of latent, pixels"),
        (
            {"hires": 2, "sampler": config.from_config(checkpoints.SCHEDULERS["sd1"])(4)},
            "a Table has one begin",
        ),
        ({"hires": 1.1}, "16 x 16 pixels 17.6 x 17.6; both must be multiples"),
        ({"hires": 2, "denoising_end": 0.5, "output": "latent"}, "denoising_end cannot be"),
        (
            {"image_latents": np.ones((1, 8, 8, 4)), "mask": np.ones((32, 32))},
            "they must be of one",
        ),
        ({"hires": 2, "guidance_scale": np.full((4, 1), 3.0)}, "a row for each evaluation"),
        ({"hires": Hires(2, 0.1)}, "no whole step of 4; use at least 0.25$"),
        ({"hires": float("nan")}, "hires is nan; give a factor"),
        ({"hires": 1e9}, "which are too many; at most 67108864"),
        ({"image_latents": np.ones((1, 8, 8, 3))}, "image_latents have shape"),
        ({"image_latents": np.ones((1, 8, 8, 4)), "image": np.ones((16, 16, 3))}, "both given"),
        ({"image_latents": np.ones((1, 4, 4, 4))}, "expected .B, 8, 8"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_step(pipe, wrong, message):
    steps = []
    with pytest.raises(ValueError, match=message):
        pipe(on_step=lambda *step: steps.append(step), **CALL | SMALL | wrong)
    assert not steps
