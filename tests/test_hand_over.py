# SPDX-License-Identifier: MIT
"""One call stops in between and another one goes on: the same steps as in one run."""

import numpy as np
import pytest
from support import checkpoints, compilations, pipeline_cases

from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.request import Request
from jaxgen.weights import diffusers

CALL = {"prompt": "a cat", "num_steps": 8, "seed": 3, "output": "latent"}
SAMPLERS = ("euler", "ddim", "heun", "euler_ancestral")


@pytest.fixture(scope="module")
def pipe():
    return pipeline_cases.pipeline("sd1")


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_halves_are_one_run(pipe, name):
    """Also with fresh noise: its key is the number of the row, which goes on."""
    whole = pipe(sampler=name, **CALL)
    first = pipe(sampler=name, denoising_end=0.6, **CALL)
    second = pipe(sampler=name, denoising_start=0.6, latents=first, **CALL)
    np.testing.assert_allclose(second, whole, rtol=1e-4, atol=1e-4)
    assert np.abs(first - whole).max() > 0.1


def test_the_times_decide_and_nothing_compiles(pipe):
    pipe(**CALL)
    seen = []
    with compilations.counted() as seconds:
        for start, end in ((None, 0.8), (0.8, None), (0.2, 0.8)):
            totals = set()
            pipe(
                sampler="euler", denoising_start=start, denoising_end=end,
                latents=np.zeros((1, 16, 16, 4)),
                on_step=lambda done, total, *_, totals=totals: totals.add(total),
                **CALL | {"num_steps": 10},
            )  # fmt: skip
            seen += totals
    assert len(seconds) == 0
    assert seen == [8, 2, 6]  # of ten times, evenly over the training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"denoising_end": 1.5}, "denoising_end is 1.5; it must lie between 0 and 1"),
        ({"denoising_start": "x"}, "denoising_start is 'x'"),
        ({"denoising_start": 0.5}, "give them as latents"),
        ({"denoising_end": 0.5, "output": "image"}, "use output='latent'"),
        ({"denoising_end": 0.01}, "no step lies between"),
        ({"denoising_end": 0.5, "sampler": "pndm"}, "takes 17 evaluations for 8 steps"),
    ],
)
def test_what_cannot_be_handed_over_is_refused(pipe, wrong, message):
    with pytest.raises(ValueError, match=message):
        pipe(**CALL | wrong)


def test_a_refiner_takes_scores_and_one_text_encoder(tmp_path):
    folder = tmp_path / "refiner"
    diffusers.write(folder, checkpoints.checkpoint("refiner"))
    networks = loading.networks(diffusers.read(folder))
    assert list(networks.encoders) == ["text_encoder_2"]
    asked = Request("a cat", original_size=(40, 50), crop=(3, 4))
    ids = arguments.batch(asked, networks, checkpoints.SCHEDULERS["xl"]).time_ids
    np.testing.assert_array_equal(ids, [[[40, 50, 3, 4, 2.5], [40, 50, 3, 4, 6.0]]])
    other = checkpoints.checkpoint("sd1")
    components = other.components | {"unet": checkpoints.checkpoint("refiner").components["unet"]}
    with pytest.raises(ValueError, match="with pooled text and the text encoders text_encoder do"):
        loading.networks(other._replace(components=components))
