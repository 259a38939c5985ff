# SPDX-License-Identifier: MIT
"""DeepCache: rows between full ones take deep features again, as data of the one loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import checkpoints, compilations, controlnets, pipeline_cases

from jaxgen.diffusion import guidance, sample
from jaxgen.stable_diffusion import placement
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request

CALL = {"height": 16, "width": 16, "output": "latent", "sampler": "euler", "num_steps": 4}
PROMPTS = ["a cat", "the lake"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline_cases.pipeline("sd1")


@pytest.fixture(scope="module")
def cached(pipe):
    return pipe(PROMPTS, cache_interval=2, **CALL)


def by_hand(pipe, interval):
    """A Python loop over whole UNets in which the last layer's input is the last full row's."""
    inputs = pipe.inputs(Request(PROMPTS, **CALL))
    unet, table = pipe.networks.unet, inputs.table
    prepared, state = pipe.programs.begin(pipe.params["unet"], inputs)
    latents = state.latents
    kept = np.zeros((2 * len(PROMPTS), *latents.shape[2:4], unet.block_out_channels[0]))

    @jax.jit
    def whole(x, i, kept, is_full):
        taken = []

        def replacing(call, args, kwargs, context):
            if context.method_name == "layer" and context.module.path == ("up_blocks_1",):
                number, deep, *rest = args
                if number == unet.layers_per_block:  # the last of the way up
                    taken.append(jnp.where(is_full, deep, kept))
                    args = (number, taken[0], *rest)
            return call(*args, **kwargs)

        emb = jnp.repeat(prepared.times[i][None], len(kept), axis=0)
        with nn.intercept_methods(replacing):
            variables = {"params": pipe.params["unet"]}
            out = unet.apply(
                variables, guidance.repeated(x, 2), emb, prepared.text, method="denoise"
            )
        return out, taken[0]

    for i in range(int(table.start_row), int(table.num_rows)):
        is_full = (i - int(table.start_row)) % interval == 0
        x = sample.seen(table, i, latents)
        out, kept = whole(x, i, kept, is_full)
        rule = guidance.Guidance(inputs.guidance_scale, inputs.guidance_rescale)
        out, _ = guidance.combine(rule, x, i, out)
        latents, _ = sample.advance(table, i, latents, out, noise=np.zeros((4, *x.shape)))
    return np.asarray(latents[0])


def test_rows_between_full_ones_take_the_last_full_ones_features(pipe, cached):
    expected = by_hand(pipe, 2)
    np.testing.assert_allclose(cached, expected, atol=1e-5 * np.abs(expected).max())


def test_an_interval_of_one_is_no_cache(pipe, cached):
    plain = pipe(PROMPTS, **CALL)
    np.testing.assert_array_equal(pipe(PROMPTS, cache_interval=1, **CALL), plain)
    # the program with a cache, in which every row is full
    inputs = pipe.inputs(Request(PROMPTS, cache_interval=2, **CALL))
    final = pipe.latents(inputs._replace(full=np.ones_like(inputs.full)))
    np.testing.assert_allclose(final, plain, atol=1e-5 * np.abs(plain).max())
    assert np.abs(cached - plain).max() > 1e-3


def test_other_intervals_and_samplers_compile_nothing(pipe, cached):
    with compilations.counted() as seconds:
        other = pipe(PROMPTS, cache_interval=3, **CALL | {"sampler": "ddim", "num_steps": 5})
    assert seconds == []
    assert np.abs(other - cached).max() > 1e-3


@pytest.fixture(scope="module")
def of_small():
    """The latents of a UNet of one level, whose programs take less time to compile."""
    pipe = StableDiffusion(checkpoints.small())
    final = pipe(PROMPTS, cache_interval=2, **CALL)
    assert np.abs(final - pipe(PROMPTS, **CALL)).max() > 1e-3
    return final


def test_host_and_device_loop_agree(of_small):
    on_device = StableDiffusion(checkpoints.small(), loop="device")
    final = on_device(PROMPTS, cache_interval=2, **CALL)
    np.testing.assert_allclose(final, of_small, atol=1e-5 * np.abs(of_small).max())


@pytest.mark.slow
def test_images_of_a_mesh_cache_their_own(of_small):
    on_mesh = StableDiffusion(checkpoints.small(), mesh=placement.mesh_of(2))
    final = on_mesh(PROMPTS, cache_interval=2, **CALL)
    np.testing.assert_allclose(final, of_small, atol=1e-5 * np.abs(of_small).max())


def test_what_controlnets_add_is_taken_again_too():
    net = controlnets.component("sd1")
    pipe = StableDiffusion(checkpoints.checkpoint("sd1"), controlnets=[net])
    picture = np.zeros((16, 16, 3), np.uint8)
    call = CALL | {"cache_interval": 2, "num_steps": 3, "control_image": picture}
    first = pipe("a cat", **call)
    # at the first row only: the second takes it again
    early = pipe("a cat", **call | {"control_end": 0.34, "num_steps": 3})
    without = pipe("a cat", **call | {"control_scale": 0.0})
    assert np.abs(first - without).max() > 1e-4
    assert np.abs(early - first).max() > 1e-6
    assert np.abs(early - without).max() > 1e-4


@pytest.mark.parametrize("interval", [0, -1, 1.5, "2", None, True, [2]])
def test_intervals_that_are_none_are_refused(pipe, interval):
    with pytest.raises(ValueError, match="cache_interval is .*; it must be a whole number, 1"):
        pipe("a cat", cache_interval=interval, **CALL)
