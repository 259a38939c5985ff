# SPDX-License-Identifier: MIT
"""The functional core as a function: jitted, mapped, exported."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import checkpoints, pipeline_cases

from jaxgen.diffusion import table
from jaxgen.stable_diffusion import generate
from jaxgen.stable_diffusion.inputs import Inputs
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request


@pytest.fixture(scope="module")
def pipe():
    return StableDiffusion(checkpoints.small())


@pytest.fixture(scope="module")
def function(pipe):
    """(params, inputs) -> images."""
    return jax.jit(functools.partial(generate.generate, pipe.networks.unet, pipe.networks.vae))


def inputs(pipe, **asked):
    settings = {"num_steps": 3, "sampler": "euler", "seed": 2} | asked
    return pipe.inputs(Request(**({"prompt": ["a cat", "the dog"]} | settings)))


def test_generate_is_what_the_pipeline_does(pipe, function):
    for asked in ({}, {"sampler": "euler_ancestral", "num_steps": 5}):
        images = function(pipe.params, inputs(pipe, **asked))
        assert images.dtype == jnp.uint8
        expected = pipe(
            ["a cat", "the dog"], seed=2, **({"num_steps": 3, "sampler": "euler"} | asked)
        )
        assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


def test_one_trace_serves_all_settings(pipe, function):
    before = function._cache_size()
    for asked in ({"seed": 8}, {"guidance_scale": [2, 9]}, {"sampler": "heun", "num_steps": 7}):
        function(pipe.params, inputs(pipe, **asked))
    assert function._cache_size() == max(before, 1)


@pytest.mark.slow
def test_generate_maps_over_inputs(pipe, function):
    """Two runs of different samplers and lengths in one vmapped call."""
    runs = [inputs(pipe), inputs(pipe, sampler="ddim", num_steps=5, guidance_scale=2.0, seed=9)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    mapped = jax.jit(jax.vmap(function, in_axes=(None, 0)))(pipe.params, stacked)
    for found, run in zip(mapped, runs, strict=True):
        difference = np.abs(found.astype(int) - function(pipe.params, run).astype(int))
        assert difference.max() <= 1


def test_generate_is_exported(pipe, function):
    given, other = inputs(pipe), inputs(pipe, sampler="dpmpp_2m", num_steps=4, seed=5)
    exported = jax.export.export(function)(pipe.params, given)
    check_same(exported.call, function, pipe.params, [given, other])


def test_an_exported_program_is_stored_and_read_back(pipe, function):
    for kind, name in ((Inputs, "jaxgen.Inputs"), (table.Table, "jaxgen.Table")):
        jax.export.register_namedtuple_serialization(kind, serialized_name=name)
    given = inputs(pipe)
    stored = jax.export.export(function)(pipe.params, given).serialize()
    check_same(jax.export.deserialize(stored).call, function, pipe.params, [given])


def check_same(call, function, params, runs):
    for run in runs:
        difference = np.abs(call(params, run).astype(int) - function(params, run).astype(int))
        assert difference.max() <= 1


def test_what_does_not_depend_on_the_step_is_outside_the_loop(pipe):
    """No sinusoid of a time and no key or value of the text is computed by a step."""
    unet, params, given = pipe.networks.unet, pipe.params["unet"], inputs(pipe)
    text = params["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]["attn2"]["to_k"][
        "kernel"
    ]
    prepared, state = jax.eval_shape(functools.partial(generate.begin, unet), params, given)
    of_begin = str(jax.make_jaxpr(functools.partial(generate.begin, unet))(params, given))
    of_step = str(
        jax.make_jaxpr(functools.partial(generate.step, unet))(
            params, given, prepared, jnp.int32(0), state
        )
    )
    product = f"f32[{text.shape[0]},{text.shape[1]}]"
    assert " sin " in of_begin
    assert " sin " not in of_step
    assert product in of_begin
    dots = [line for line in of_step.splitlines() if "dot_general" in line]
    assert dots
    assert not any(f",{given.context.shape[2]},{text.shape[0]}]" in line for line in dots)
    assert prepared.times.shape == (1024, 32)


def test_an_xl_network_without_pooled_text_and_sizes_says_so():
    xl = pipeline_cases.pipeline("xl")
    given = xl.inputs(Request("a cat", num_steps=2))
    with pytest.raises(ValueError, match="this UNet takes pooled text and sizes; give pooled and"):
        generate.begin(xl.networks.unet, xl.params["unet"], given._replace(pooled=None))


def test_the_three_noises_of_an_image_are_independent():
    seeds = np.arange(200)
    drawn = [
        generate.initial_noise(seeds, (4, 4, 4)),
        generate.posterior_noise(seeds, (4, 4, 4), "image"),
        generate.posterior_noise(seeds, (4, 4, 4), "masked_image"),
    ]
    flat = np.stack([np.asarray(x).ravel() for x in drawn])
    correlation = np.corrcoef(flat) - np.eye(3)
    assert np.abs(correlation).max() < 4 / np.sqrt(flat.shape[1])
    assert np.abs(flat.std(axis=1) - 1).max() < 0.03


@pytest.mark.slow
def test_a_network_distilled_for_guidance_is_told_its_scale(pipe):
    """Latent consistency models: no negative half, an embedded scale for every image instead."""
    unet = pipe.networks.unet.clone(time_cond_proj_dim=8)
    shapes = jax.eval_shape(
        unet.init, jax.random.key(0), jnp.zeros((1, 16, 16, 4)), jnp.zeros(1),
        jnp.zeros((1, 77, 24)), None, None, jnp.zeros((1, 8)),
    )["params"]  # fmt: skip
    params = dict(pipe.params["unet"])
    added = shapes["time_embedding"]["cond_proj"]["kernel"]
    kernel = np.random.default_rng(0).standard_normal(added.shape).astype(np.float32)
    params["time_embedding"] = params["time_embedding"] | {"cond_proj": {"kernel": kernel}}
    given = inputs(pipe, guidance_scale=1.0)._replace(guidance_scale=jnp.array([2.0, 8.0]))
    prepared, _ = jax.eval_shape(functools.partial(generate.begin, unet), params, given)
    assert prepared.times.shape == (1024, 2, 32)
    final = jax.jit(functools.partial(generate.latents, unet))
    apart = [
        final(params, given._replace(guidance_scale=jnp.full(2, scale)))[j]
        for j, scale in enumerate((2.0, 8.0))
    ]
    np.testing.assert_allclose(final(params, given), np.stack(apart), rtol=1e-3, atol=1e-4)
    assert np.abs(final(params, given)[0] - final(params, given._replace(
        guidance_scale=jnp.full(2, 8.0)))[0]).max() > 1e-2  # fmt: skip
