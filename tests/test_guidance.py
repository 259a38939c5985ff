# SPDX-License-Identifier: MIT
"""Guidance row by row: equal tables are equal bits, CFG++ and projections by their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import checkpoints, compilations, pipeline_cases

from jaxgen.diffusion import config, guidance, sample, schedule

SHAPE = (4, 4, 3)
CALL = {"num_steps": 4, "sampler": "euler", "output": "latent", "height": 16, "width": 16}
TWO = {"prompt": ["a cat", "the dog"], "negative_prompt": "a lake", "seed": [3, 4]}


@pytest.fixture(scope="module")
def pipe():
    return pipeline_cases.pipeline("sd1")


def unit(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def two_linear_models(x, i):
    """Negative rows see 0.3 x + 0.1, positive ones 0.5 x - 0.2."""
    even = (jnp.arange(len(x)) % 2 == 0).reshape(-1, 1, 1, 1)
    return jnp.where(even, 0.3 * x + 0.1, 0.5 * x - 0.2)


def test_a_constant_table_is_the_number_bit_for_bit(pipe):
    number = pipe(**TWO, guidance_scale=5.0, guidance_rescale=0.5, **CALL)
    rows = np.full((4, 1), 5.0)
    table = pipe(**TWO, guidance_scale=rows, guidance_rescale=rows / 10, **CALL)
    function = pipe(**TWO, guidance_scale=guidance.ramp(5, 5), guidance_rescale=0.5, **CALL)
    np.testing.assert_array_equal(table, number)
    np.testing.assert_array_equal(function, number)


def test_each_image_has_its_own_rows_and_nothing_compiles(pipe):
    first, second = [[7.0], [3.0], [1.0], [2.0]], [[1.0], [1.0], [0.0], [9.0]]
    both = [a + b for a, b in zip(first, second, strict=True)]
    call = TWO | CALL
    pipe(**call)
    with compilations.counted() as seconds:
        found = pipe(guidance_scale=both, **call)
        pipe(guidance_scale=guidance.interval(8.0, 0.25, 0.75), **call)
        pipe(guidance_parallel=[0.0, 0.5], guidance_limit=[None, 2.5], **call)
    assert len(seconds) == 0
    for j, own in enumerate((first, second)):
        alone = {**call, "prompt": TWO["prompt"][j], "seed": TWO["seed"][j]}
        expected = pipe(guidance_scale=own, **alone)
        np.testing.assert_allclose(found[j : j + 1], expected, rtol=1e-4, atol=1e-4)


def test_rows_of_one_are_no_guidance(pipe):
    call = {"prompt": "a cat", **CALL}
    plain = pipe(guidance_scale=1.0, **call)
    np.testing.assert_array_equal(pipe(guidance_scale=np.ones((4, 1)), **call), plain)
    # one guided row: both halves are computed, and the others still follow the prompt alone
    late = pipe(guidance_scale=guidance.interval(6.0, 0.75, 1.0), **call)
    assert np.abs(late - plain).max() > 1e-3
    steps = {}
    for scale in (1.0, guidance.interval(6.0, 0.75, 1.0)):
        seen = steps.setdefault(isinstance(scale, float), [])
        pipe(guidance_scale=scale, on_step=lambda *args, seen=seen: seen.append(args[2]), **call)
    np.testing.assert_allclose(steps[False][2], steps[True][2], rtol=1e-4, atol=1e-4)


def test_intervals_and_ramps():
    table = config.from_config({}, "euler")(num_steps=5, start_step=1)
    np.testing.assert_array_equal(guidance.interval(3.0, 0.25, 0.75)(table).T, [[1, 3, 3, 1]])
    np.testing.assert_array_equal(guidance.ramp(1.0, 4.0)(table).T, [[1, 2, 3, 4]])
    with pytest.raises(ValueError, match=r"from 0.7 to 0.2 of a run"):
        guidance.interval(3.0, 0.7, 0.2)
    with pytest.raises(
        ValueError, match="strength of CFG\\+\\+ is 7.5; it must lie between 0 and 1"
    ):
        guidance.cfg_plus_plus(7.5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("final", [True, False])
def test_cfg_plus_plus_is_the_papers_algorithm(prediction_type, final):
    settings = {"prediction_type": prediction_type, "set_alpha_to_one": final, "steps_offset": 1}
    settings |= {"clip_sample": False, **checkpoints.BETAS}
    table = config.from_config(settings, "ddim")(num_steps=6)
    scales = guidance.cfg_plus_plus(0.7)(table)
    noise = unit(0, 2, *SHAPE)
    column = np.ones((len(table.t), 1), np.float32)
    column[:6] = scales
    denoise = guidance.guide(two_linear_models, np.repeat(column, 2, 1), np.zeros(2))
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    found = sample.sample(denoise, table, sample.scaled_noise(table, noise), keys)

    # Chung et al. 2024, algorithm 2, with alphas_cumprod of the times that the table names
    alphas = schedule.noise_schedule().alphas_cumprod
    times = [int(t) for t in table.t[:6]]
    following = [*(alphas[t] for t in times[1:]), 1.0 if final else alphas[0]]
    x = noise.astype(np.float64)
    for t, after in zip(times, following, strict=True):
        a, s = np.sqrt(alphas[t]), np.sqrt(1 - alphas[t])
        outputs = 0.3 * x + 0.1, 0.5 * x - 0.2
        if prediction_type == "v_prediction":  # eps = a v + s x
            outputs = tuple(a * v + s * x for v in outputs)
        negative, positive = outputs
        guided = negative + 0.7 * (positive - negative)
        x = np.sqrt(after) * (x - s * guided) / a + np.sqrt(1 - after) * negative
    np.testing.assert_allclose(found, x, rtol=2e-4, atol=2e-5)


def test_cfg_plus_plus_refuses_samplers_with_a_history():
    table = config.from_config({}, "dpmpp_2m")(num_steps=6)
    with pytest.raises(ValueError, match="use ddim, euler"):
        guidance.cfg_plus_plus(0.5)(table)


def projected(x0, direction, parallel, limit):
    """Sadat et al. 2024, algorithm 1, for one picture and without momentum, in float64."""
    x0, direction = x0.astype(np.float64).ravel(), direction.astype(np.float64).ravel()
    direction = direction * min(1, limit / np.linalg.norm(direction))
    axis = x0 / np.linalg.norm(x0)
    along = direction @ axis * axis
    return (direction - along) + parallel * along


def test_projections_are_those_of_estimates_of_x_0():
    table = config.from_config({"prediction_type": "v_prediction"}, "euler")(num_steps=3)
    x, i = unit(0, 3, *SHAPE), 1
    parallel, limit = np.array([0.0, 0.4, 1.0]), np.array([np.inf, 1.5, 0.8])
    rule = guidance.projection(table, parallel, limit)
    scale = np.array([7.5, 3.0, 2.0])
    found = guidance.guide(two_linear_models, scale, np.zeros(3), rule)(x, jnp.int32(i))
    latent = x / table.scale[i]
    estimate = lambda out: table.denoised[i, 0] * latent + table.denoised[i, 1] * out  # noqa: E731
    negative, positive = estimate(0.3 * x + 0.1), estimate(0.5 * x - 0.2)
    for j in range(3):
        change = projected(positive[j], positive[j] - negative[j], parallel[j], limit[j])
        expected = positive[j] + (scale[j] - 1) * change.reshape(SHAPE)
        np.testing.assert_allclose(estimate(found)[j], expected, rtol=1e-4, atol=1e-5)


def test_a_projection_that_keeps_all_changes_no_bit():
    table = config.from_config({}, "ddim")(num_steps=3)
    x, scale = unit(1, 2, *SHAPE), np.array([7.5, 3.0])
    rule = guidance.projection(table, np.ones(2), np.full(2, np.inf))
    run = [
        jax.jit(lambda x, own=own: guidance.guide(two_linear_models, scale, np.zeros(2), own)(x, 0))
        for own in (None, rule)
    ]
    np.testing.assert_array_equal(run[0](x), run[1](x))
    still = guidance.guide(lambda x, i: jnp.zeros_like(x), scale, np.zeros(2), rule)
    np.testing.assert_array_equal(still(x, 0), 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guidance_scale": np.ones((3, 1))}, r"shape \(3, 1\); expected \[4, images\], a row for"),
        ({"guidance_scale": np.ones((4, 3))}, "the batch has 3 images, but prompt has 2"),
        ({"guidance_scale": [[1.0], [2.0, 3.0]]}, "a row for each evaluation"),
        ({"guidance_scale": [[1.0], [2.0], [3.0], [np.nan]]}, "must be finite"),
        ({"guidance_scale": lambda table: 3}, "what guidance_scale returns is 3"),
        ({"guidance_rescale": [[1.0], [2.0], [3.0], [1.0]]}, "must lie between 0 and 1"),
        ({"guidance_parallel": 1.5}, "guidance_parallel is 1.5; it must be between 0 and 1"),
        ({"guidance_limit": 0}, "guidance_limit is 0; it must be positive"),
        ({"guidance_scale": np.ones((2, 2, 2))}, "a row for each evaluation"),
    ],
)
def test_wrong_tables_are_refused(pipe, wrong, message):
    with pytest.raises(ValueError, match=message):
        pipe(**TWO, **wrong, **CALL)
