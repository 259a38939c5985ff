# SPDX-License-Identifier: MIT
"""The loop that runs tables: against the tables' own matrices, and against what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support.sampler_maps as maps
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.diffusion import config, guidance, sample, schedule
from jaxgen.diffusion.table import Table

SHAPE = (2, 3, 4)  # H, W, C


def linear_model(x, t):
    """Depends on time and position, and stays linear, so that float64 NumPy can follow it."""
    return 0.3 * x * jnp.cos(t / 300) + 0.1 * jnp.sin(t / 100)


@jax.jit
def run(table, x, keys):
    """One program for all tables of this file; it compiles once per batch size."""
    return sample.sample(sample.at_times(linear_model, table), table, x, keys)


def steps(one_step, table, x):
    """The same run driven from Python: (row, latent, estimate of x_0) after every row."""
    state = sample.first_state(x)
    for i in maps.rows_of(table):
        state, x0 = one_step(np.int32(i), state)
        yield i, state[0], x0


def numpy_run(table, x, noise):
    """The same run by the table's matrices in float64."""
    state = np.zeros((6, *x.shape))
    state[0] = x
    for i in maps.rows_of(table):
        out = 0.3 * table.scale[i] * state[0] * np.cos(table.t[i] / 300)
        out += 0.1 * np.sin(table.t[i] / 100)
        inputs = np.concatenate([state, out[None], noise[i][None]])
        state = np.tensordot(table.update[i], inputs, axes=1)
    return state[0]


def unit(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def image_keys(batch_size, seed=0):
    return jax.random.split(jax.random.key(seed), batch_size)


MODEL = schedule.noise_schedule()
TABLES = {
    "ddim": maps.table("ddim", MODEL, 6),
    "pndm": maps.table("pndm", MODEL, 6, skip_prk_steps=True),
    "pndm, Runge-Kutta": maps.table("pndm", MODEL, 6),
    "euler_ancestral": maps.table("euler_ancestral", MODEL, 6),
    "dpm2_ancestral": maps.table("dpm2_ancestral", MODEL, 5),
    "dpmpp_2m_sde": maps.table("dpmpp_2m_sde", MODEL, 9, start_step=3),
    "unipc": maps.table("unipc", MODEL, 7, order=3),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_loop_computes_the_table(name):
    table = TABLES[name]
    x = sample.scaled_noise(table, unit(0, 2, *SHAPE))
    noise = unit(1, int(table.num_rows), 2, *SHAPE)

    @jax.jit
    def run_with_noise(table, x, noise):
        return sample.sample(sample.at_times(linear_model, table), table, x, noise=noise)

    found = run_with_noise(table, x, noise)
    expected = numpy_run(table, np.asarray(x, np.float64), noise)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_one_compilation_serves_every_sampler_and_setting():
    traces = []

    @jax.jit
    def generate(table, noise, keys, guidance_scale, guidance_rescale):
        traces.append(None)

        def model(x, t):
            return linear_model(x, t) + jnp.arange(x.shape[0]).reshape(-1, 1, 1, 1)

        x = sample.noised(table, jnp.ones_like(noise), noise)
        denoise = guidance.guide(sample.at_times(model, table), guidance_scale, guidance_rescale)
        return sample.sample(denoise, table, x, keys)

    noise, keys = unit(0, 2, *SHAPE), image_keys(2)
    settings = {"steps_offset": 1, "clip_sample": False, "skip_prk_steps": True}
    for number, name in enumerate(config.SAMPLERS):
        for spacing, prediction_type in (("leading", "epsilon"), ("trailing", "v_prediction")):
            sampler = config.from_config(
                {**settings, "timestep_spacing": spacing, "prediction_type": prediction_type}, name
            )
            table = sampler(num_steps=4 + number, start_step=number % 3)
            scale = np.array([1.5, 7.5 + number], np.float32)
            out = generate(table, noise, keys, scale, np.array([0.0, 0.7], np.float32))
            assert np.isfinite(out).all(), name
    assert len(traces) == 1


def test_steps_driven_from_python_equal_the_loop_bit_for_bit():
    table = TABLES["dpmpp_2m_sde"]
    x, keys = unit(0, 2, *SHAPE), image_keys(2)

    @jax.jit
    def one_step(i, state):
        return sample.step(sample.at_times(linear_model, table), table, i, state, keys)

    seen = list(steps(one_step, table, x))
    looped = run(table, x, keys)
    np.testing.assert_array_equal(seen[-1][1], looped)


def test_the_last_step_of_ddim_goes_all_the_way_to_its_estimate():
    table, x, keys = TABLES["ddim"], unit(0, 2, *SHAPE), image_keys(2)
    denoise = sample.at_times(linear_model, table)
    one_step = jax.jit(lambda i, state: sample.step(denoise, table, i, state, keys))
    *_, (_, latent, estimate) = steps(one_step, table, x)
    np.testing.assert_allclose(estimate, latent, rtol=1e-5, atol=1e-6)


def test_noise_of_an_image_does_not_depend_on_its_batch():
    table, keys, x = TABLES["euler_ancestral"], image_keys(2), unit(0, 2, *SHAPE)
    together = run(table, x, keys)
    for j in range(2):
        alone = run(table, x[j : j + 1], keys[j : j + 1])
        np.testing.assert_allclose(alone[0], together[j], rtol=1e-6, atol=1e-6)


def test_given_noise_equals_the_noise_of_the_keys():
    table, keys, x = TABLES["dpmpp_2m_sde"], image_keys(2), unit(0, 2, *SHAPE)
    noise = jnp.stack([
        jnp.stack([jax.random.normal(jax.random.fold_in(key, i), SHAPE) for key in keys])
        for i in range(int(table.num_rows))
    ])  # fmt: skip
    drawn = run(table, x, keys)
    given = sample.sample(sample.at_times(linear_model, table), table, x, noise=noise)
    np.testing.assert_allclose(given, drawn, rtol=1e-6, atol=1e-6)


def test_keys_or_noise_must_be_given_and_not_both():
    table, x = TABLES["ddim"], unit(0, 1, *SHAPE)
    with pytest.raises(ValueError, match="give either keys"):
        sample.sample(linear_model, table, x)
    with pytest.raises(ValueError, match="not both"):
        sample.sample(linear_model, table, x, image_keys(1), noise=unit(0, 6, 1, *SHAPE))


def test_guidance_follows_its_formula_with_a_scale_per_image():
    def model(x, t):
        return x * jnp.tile(jnp.array([1.0, 3.0]), x.shape[0] // 2).reshape(-1, 1, 1, 1)

    x = unit(0, 3, *SHAPE)
    guided = guidance.guide(model, np.array([0.0, 1.0, 5.0]), np.zeros(3))(x, jnp.float32(1))
    # negative + s (positive - negative), with negative x and positive 3 x
    np.testing.assert_allclose(guided, x * np.array([1, 3, 11]).reshape(3, 1, 1, 1), rtol=1e-6)


def test_guidance_rescale_restores_the_contrast_of_the_positive_output():
    shift = unit(3, 1, *SHAPE)

    def model(x, t):
        which = jnp.tile(jnp.array([0.0, 1.0]), x.shape[0] // 2).reshape(-1, 1, 1, 1)
        return x + which * shift

    x = unit(0, 3, *SHAPE)
    scale = np.full(3, 7.5, np.float32)
    plain = guidance.guide(model, scale, np.zeros(3))(x, jnp.float32(1))
    half, full = (
        guidance.guide(model, scale, np.full(3, r))(x, jnp.float32(1)) for r in (0.5, 1.0)
    )
    np.testing.assert_allclose(
        np.std(full, axis=(1, 2, 3)), np.std(x + shift, axis=(1, 2, 3)), rtol=1e-5
    )
    np.testing.assert_allclose(half, (plain + full) / 2, rtol=1e-5, atol=1e-6)


def test_rescale_of_a_constant_output_is_finite():
    guided = guidance.guide(lambda x, t: jnp.zeros_like(x), np.ones(2), np.zeros(2))
    np.testing.assert_array_equal(guided(unit(0, 2, *SHAPE), jnp.float32(1)), 0)


def test_image_to_image_noise_is_scaled_once_and_has_its_own_key():
    """Fault 6 of the last Flax pipeline: one key for two noises, and init_noise_sigma on top."""
    streams = sample.noise_keys(image_keys(2))
    draws = [sample.initial_noise(keys, (64, 64, 4)).ravel() for keys in streams]
    correlation = np.corrcoef(np.stack(draws)) - np.eye(3)
    assert np.abs(correlation).max() < 0.02  # 4.6 standard errors of 32,768 pairs

    clean, noise = unit(0, 1, *SHAPE), unit(1, 1, *SHAPE)
    train = schedule.training_sigmas(MODEL)
    for name in ("euler", "lms", "heun"):
        table = maps.table(name, MODEL, 11, start_step=4)
        level = np.interp(table.t[int(table.start_row)], np.arange(1000), train)
        found = sample.noised(table, clean, noise)
        np.testing.assert_allclose(found, clean + level * noise, rtol=1e-5)
    table = maps.table("ddim", MODEL, 10, start_step=4)
    ac = MODEL.alphas_cumprod[500]
    found = sample.noised(table, clean, noise)
    np.testing.assert_allclose(found, ac**0.5 * clean + (1 - ac) ** 0.5 * noise, rtol=1e-5)


def test_the_steps_stream_is_not_the_initial_noise():
    streams = sample.noise_keys(image_keys(1))
    initial = sample.initial_noise(streams.initial, SHAPE)[0]
    for i in range(4):
        fresh = jax.random.normal(jax.random.fold_in(streams.steps[0], i), SHAPE)
        assert np.abs(fresh - initial).max() > 0.1


@pytest.mark.parametrize("name", ["ddim", "pndm", "euler_ancestral", "unipc"])
def test_inpainting_keeps_what_is_outside_the_mask(name):
    table = TABLES[name]
    clean, noise = unit(0, 2, *SHAPE), unit(1, 2, *SHAPE)
    mask = np.zeros((2, *SHAPE[:2], 1), np.float32)
    mask[:, 0] = 1
    inpainting = sample.Inpainting(mask, clean, noise)
    x = sample.scaled_noise(table, noise)

    @jax.jit
    def one_step(i, state):
        denoise = sample.at_times(linear_model, table)
        return sample.step(denoise, table, i, state, image_keys(2), inpainting=inpainting)

    latents = [latent for _, latent, _ in steps(one_step, table, x)]
    np.testing.assert_array_equal(latents[-1][:, 1], clean[:, 1])
    for row, latent in zip(maps.rows_of(table), latents[:-1], strict=False):
        signal, amount = table.noising[row + 1]
        expected = signal * clean[:, 1] + amount * noise[:, 1]
        np.testing.assert_allclose(latent[:, 1], expected, rtol=1e-5, atol=1e-5)


def test_a_full_mask_changes_nothing():
    table, x, keys = TABLES["unipc"], unit(0, 2, *SHAPE), image_keys(2)
    mask = np.ones((2, *SHAPE[:2], 1), np.float32)
    inpainting = sample.Inpainting(mask, unit(1, 2, *SHAPE), unit(2, 2, *SHAPE))
    denoise = sample.at_times(linear_model, table)
    masked = sample.sample(denoise, table, x, keys, inpainting=inpainting)
    plain = run(table, x, keys)
    np.testing.assert_allclose(masked, plain, rtol=1e-6, atol=1e-6)


def test_nothing_to_run_returns_the_given_latent():
    table = maps.table("euler", MODEL, 5, start_step=5)
    clean = unit(0, 1, *SHAPE)
    x = sample.noised(table, clean, unit(1, 1, *SHAPE))
    out = run(table, x, image_keys(1))
    np.testing.assert_array_equal(out, clean)


def test_latents_stay_float32_around_a_half_precision_model():
    seen = []

    def model(x, t):
        seen.append((x.dtype, t.dtype))
        return linear_model(x, t).astype(jnp.bfloat16)

    table = TABLES["unipc"]
    denoise = sample.at_times(model, table)
    out = sample.sample(denoise, table, unit(0, 1, *SHAPE), image_keys(1))
    assert out.dtype == jnp.float32
    assert seen[0] == (jnp.float32, jnp.float32)


def test_samplers_run_side_by_side_under_vmap():
    tables = [TABLES["euler_ancestral"], TABLES["unipc"], TABLES["pndm"]]
    stacked = Table(*(np.stack(column) for column in zip(*tables, strict=True)))
    x, keys = unit(0, 2, *SHAPE), image_keys(2)
    together = jax.vmap(run, in_axes=(0, None, None))(stacked, x, keys)
    for found, table in zip(together, tables, strict=True):
        expected = run(table, x, keys)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sharded_over_devices_gives_the_same_latents():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    table, x, keys = TABLES["euler_ancestral"], unit(0, 8, *SHAPE), image_keys(8)

    @jax.jit
    def guided(table, x, keys):
        denoise = sample.at_times(linear_model, table)
        denoise = guidance.guide(denoise, jnp.full(8, 3.0), jnp.full(8, 0.5))
        return sample.sample(denoise, table, x, keys)

    by_image = NamedSharding(mesh, P("data"))
    lowered = guided.lower(table, jax.device_put(x, by_image), jax.device_put(keys, by_image))
    text = lowered.compile().as_text()
    assert "all-to-all" not in text
    assert "all-gather" not in text
    sharded = guided(table, jax.device_put(x, by_image), jax.device_put(keys, by_image))
    assert sharded.sharding.is_equivalent_to(by_image, sharded.ndim)
    np.testing.assert_allclose(sharded, guided(table, x, keys), rtol=1e-6, atol=1e-6)
