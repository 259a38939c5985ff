# SPDX-License-Identifier: MIT
"""Perturbed attention guidance and the momentum of adaptive projected guidance, as data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import checkpoints, compilations, pipeline_cases

from jaxgen.diffusion import config, guidance, sample
from jaxgen.nn.stable_diffusion import perturbed
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request, completed

CALL = {"height": 16, "width": 16, "output": "latent", "sampler": "euler", "num_steps": 2}
PROMPTS = ["a cat", "the lake"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline_cases.pipeline("sd1")


@pytest.fixture(scope="module")
def drawn(pipe):
    return pipe(PROMPTS, pag_scale=2.0, **CALL)


@functools.cache
def denoiser(unet):
    """The UNet, without the self-attention of the middle and of the first way down where told."""
    starts = (("mid_block",), ("down_blocks_0", "attentions_0"))

    @jax.jit
    def run(params, x, emb, text, left_out):
        def replacing(call, args, kwargs, context):
            path, method = context.module.path, context.method_name
            out = call(*args, **kwargs)
            for start, is_left_out in zip(starts, left_out, strict=True):
                if method == "__call__" and path[: len(start)] == start and path[-1] == "attn1":
                    values = context.module.to_out[0](context.module.to_v(args[0]))
                    out = jnp.where(is_left_out, values, out)
            return out

        with nn.intercept_methods(replacing):
            return unet.apply({"params": params}, x, emb, text, method="denoise")

    return run


def outputs(pipe, inputs, x, *left_out):
    """The positive text's outputs at the first row, without the self-attentions of `denoiser`."""
    prepared, _ = pipe.programs.begin(pipe.params["unet"], inputs)
    emb = jnp.repeat(prepared.times[0][None], len(x), axis=0)
    text = jax.tree.map(lambda t: t[1::2], prepared.text)  # of pairs
    return denoiser(pipe.networks.unet)(pipe.params["unet"], x, emb, text, np.array(left_out))


def test_guidance_moves_away_from_the_model_without_self_attention(pipe):
    call = CALL | {"num_steps": 1, "spacing": "trailing"}
    inputs = pipe.inputs(Request(PROMPTS, **call))
    table, i = inputs.table, 0
    x = sample.scaled_noise(table, inputs.noise)
    seen = table.scale[i] * x
    positive, alone = (outputs(pipe, inputs, seen, mid, False) for mid in (False, True))
    assert np.abs(positive - alone).max() > 1e-3
    plain = pipe(PROMPTS, **call)
    scales = np.array([3.0, -1.0]).reshape(2, 1, 1, 1)
    expected = plain + table.update[i, 0, -2] * scales * (positive - alone)
    found = pipe(PROMPTS, pag_scale=[3.0, -1.0], **call)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    # beside no other guidance
    plain = pipe(PROMPTS, guidance_scale=1.0, **call)
    expected = plain + table.update[i, 0, -2] * scales * (positive - alone)
    found = pipe(PROMPTS, guidance_scale=1.0, pag_scale=[3.0, -1.0], **call)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_other_layers_are_left_out_and_compile_nothing(pipe, drawn):
    call = CALL | {"num_steps": 1, "spacing": "trailing"}
    inputs = pipe.inputs(Request(PROMPTS, **call))  # with texts in pairs, as `outputs` needs
    call |= {"guidance_scale": 1.0}
    x = sample.scaled_noise(inputs.table, inputs.noise)
    seen = inputs.table.scale[0] * x
    positive, alone = (outputs(pipe, inputs, seen, False, down) for down in (False, True))
    expected = pipe(PROMPTS, **call)
    expected += inputs.table.update[0, 0, -2] * 2.0 * (positive - alone)
    guided = call | {"pag_scale": 2.0}
    pipe(PROMPTS, **guided)
    with compilations.counted() as seconds:
        found = pipe(PROMPTS, **guided, pag_layers="down_blocks.0.attentions.0")
        both = pipe(PROMPTS, **CALL | {"pag_scale": 2.0}, pag_layers=["mid", "up_blocks.1"])
    assert seconds == []
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(both - drawn).max() > 1e-3


def test_names_choose_layers_as_diffusers_does():
    depths = {"down_blocks.0": (1, 2), "mid_block": (2,), "up_blocks.1": ()}
    for names, expected in (
        ("mid", [[0], [0, 0], [1, 1]]),
        (["down"], [[1], [1, 1], [0, 0]]),
        (["down_blocks.0.attentions.1.transformer_blocks.1", "mid"], [[0], [0, 1], [1, 1]]),
    ):
        found = perturbed.layers(names, depths)
        assert list(found) == ["down_blocks_0", "mid_block", "up_blocks_1"]
        assert [list(map(int, one)) for block in found.values() for one in block] == expected
    for names, message in (
        ("up", "'up', which is no self-attention of this UNet; it has some in down_blocks.0, mid_"),
        (["mid", "down_blocks.00"], "'down_blocks.00', which is no self-attention"),
        ([], r"pag_layers is \[\]; give a list of names"),
        (3, "pag_layers is 3; give a list"),
    ):
        with pytest.raises(ValueError, match=message):
            perturbed.layers(names, depths)


def test_other_scales_and_rows_of_them_compile_nothing(pipe, drawn):
    with compilations.counted() as seconds:
        other = pipe(PROMPTS, pag_scale=[[0.0, 3.0], [1.0, 0.0]], **CALL)
        same = pipe(PROMPTS, pag_scale=lambda table: [[2.0]] * 2, **CALL)
    assert seconds == []
    np.testing.assert_array_equal(same, drawn)
    assert np.abs(other - drawn).max() > 1e-3


def test_a_scale_of_zero_costs_nothing(pipe):
    inputs = pipe.inputs(Request(PROMPTS, pag_scale=[0.0, 0.0], **CALL))
    assert inputs.pag_scale is None
    assert inputs.text_index is None


def test_what_perturbed_guidance_cannot_do_is_refused(pipe):
    with pytest.raises(ValueError, match="pag_scale and prompts with AND cannot be combined"):
        pipe("a cat AND a dog", pag_scale=1.0, **CALL)
    for scale in (float("nan"), "x", None, [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=r"pag_scale|the batch has 3 images"):
            pipe(PROMPTS, pag_scale=scale, **CALL)
    request = completed(Request("a cat", pag_scale=1.0))
    without = loading.networks(checkpoints.checkpoint("sd1"))
    without = without._replace(unet=without.unet.clone(mid_block_type=None))
    with pytest.raises(ValueError, match=r"'mid', which is no self-attention of this UNet; it has"):
        arguments.batch(request, without, pipe.scheduler)


def test_momentum_is_algorithm_1_in_a_loop():
    """Sadat et al. 2024, algorithm 1, over the rows of a table, in float64."""
    shape, parallel, limit, momentum, scale = (3, 3, 2), 0.3, 2.0, -0.6, 5.0
    table = config.from_config({"prediction_type": "v_prediction"}, "euler")(num_steps=4)
    pairs = np.random.default_rng(0).normal(size=(4, 2, *shape))
    rule = guidance.projection(table, np.full(1, parallel), np.full(1, limit), np.full(1, momentum))
    rule = guidance.Guidance(np.full(1, scale), np.zeros(1), rule)
    total, total64 = jnp.zeros((1, *shape)), np.zeros(shape)
    x = np.random.default_rng(1).normal(size=shape)
    for i in range(4):
        found, total = guidance.combine(rule, jnp.asarray(x[None]), i, jnp.asarray(pairs[i]), total)
        negative, positive = (
            table.denoised[i, 0] * x / table.scale[i] + table.denoised[i, 1] * out
            for out in pairs[i]
        )
        total64 = positive - negative + momentum * total64
        change = total64 * min(1, limit / np.linalg.norm(total64))
        along = (change * positive).sum() / (positive**2).sum() * positive
        expected = positive + (scale - 1) * (change - along + parallel * along)
        estimate = table.denoised[i, 0] * x / table.scale[i] + table.denoised[i, 1] * found[0]
        np.testing.assert_allclose(estimate, expected, rtol=1e-3, atol=1e-4)


def test_a_momentum_is_carried_by_both_loops():
    pipe = StableDiffusion(checkpoints.small())
    options = CALL | {"num_steps": 3, "guidance_momentum": [-0.5, 0.0], "guidance_limit": 1.0}
    found = pipe(PROMPTS, **options)
    plain = pipe(PROMPTS, **options | {"guidance_momentum": 0.0})
    assert np.abs(found[0] - plain[0]).max() > 1e-3
    np.testing.assert_allclose(found[1], plain[1], rtol=1e-4, atol=1e-4)
    on_device = StableDiffusion(checkpoints.small(), loop="device")
    np.testing.assert_allclose(on_device(PROMPTS, **options), found, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="guidance_momentum is 1.5; it must be between -1 and 1"):
        pipe(PROMPTS, **options | {"guidance_momentum": 1.5})
