# SPDX-License-Identifier: MIT
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import (
    FULL_SIZE_UNETS,
    UNETS,
    make_unet,
    norm_epsilons,
    psnr,
    relative_error,
    unet_inputs,
    weights_by_path,
)

from jaxgen.nn.stable_diffusion.unet import UNet2DConditionModel

STORED = Path(__file__).parent / "data" / "networks.npz"


def small(name, dtype=jnp.float32):
    unet, shapes = make_unet(UNETS[name], dtype)
    return unet, {"params": weights_by_path(shapes)}, unet_inputs(UNETS[name])


@pytest.mark.parametrize("name", UNETS)
def test_unet_equals_stored_diffusers_output(name):
    unet, params, inputs = small(name)
    out = jax.jit(unet.apply)(params, *inputs)
    assert out.dtype == jnp.float32
    with np.load(STORED) as stored:
        assert relative_error(out, stored[f"unet/{name}"]) < 1e-4


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [("sd15", 686, 859_520_964), ("sd21", 686, 865_910_724), ("xl", 1680, 2_567_463_684)],
)
def test_full_size_unet_has_the_published_parameters(name, tensors, parameters):
    leaves = jax.tree.leaves(make_unet(FULL_SIZE_UNETS[name])[1])
    assert len(leaves) == tensors
    assert sum(leaf.size for leaf in leaves) == parameters


def test_submodules_carry_the_names_of_diffusers():
    shapes = make_unet(UNETS["sd1"])[1]
    blocks = shapes["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]
    assert set(blocks) == {"norm1", "norm2", "norm3", "attn1", "attn2", "ff"}
    assert set(blocks["attn1"]) == {"to_q", "to_k", "to_v", "to_out_0"}
    assert set(blocks["ff"]) == {"net_0", "net_2"}
    assert "proj" in blocks["ff"]["net_0"]
    assert set(shapes["up_blocks_0"]) == {"resnets_0", "resnets_1", "upsamplers_0"}


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_every_norm_has_the_epsilon_of_diffusers(name):
    for path, epsilon in norm_epsilons(
        make_unet(UNETS[name])[0], *unet_inputs(UNETS[name])
    ).items():
        is_transformer_2d = "attentions" in path and path.endswith("/norm")
        assert epsilon == (1e-6 if is_transformer_2d else 1e-5), path


@pytest.mark.slow
def test_conditions_computed_beforehand_give_the_same_output():
    unet, params, (sample, timesteps, text, *added) = small("xl")

    @jax.jit
    def precompute(params, schedule, text, *added):
        emb = unet.apply(params, schedule, method="embed_time")
        context = unet.apply(params, text, method="text_context")
        return emb, unet.apply(params, *added, method="embed_added"), context

    schedule = jnp.concatenate([jnp.arange(3.0), timesteps])  # a whole run's timesteps
    emb, added_emb, context = precompute(params, schedule, text, *added)
    denoise = jax.jit(lambda params, *args: unet.apply(params, *args, method="denoise"))
    out = denoise(params, sample, emb[3:] + added_emb, context)
    with np.load(STORED) as stored:
        assert relative_error(out, stored["unet/xl"]) < 1e-5


def test_one_timestep_serves_the_whole_batch():
    config = {
        "block_out_channels": (16,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "mid_block_type": None,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
    }
    unet, shapes = make_unet(config)
    params = {"params": weights_by_path(shapes)}
    sample, _, text = unet_inputs(config)
    one = unet.apply(params, sample, jnp.asarray(500), text)
    each = unet.apply(params, sample, jnp.asarray([500, 500]), text)
    np.testing.assert_array_equal(one, each)


def test_odd_sizes_keep_their_shape():
    unet, params, (_, timesteps, text) = small("sd1")
    sample = jnp.zeros((2, 13, 10, 4))
    out = jax.eval_shape(unet.apply, params, sample, timesteps, text)
    assert out.shape == sample.shape


@pytest.mark.slow
def test_bfloat16_unet_is_close_to_float32():
    unet, params, inputs = small("sd1", jnp.bfloat16)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)  # as the pipeline loads them
    out = jax.jit(unet.apply)(params, *inputs)
    assert out.dtype == jnp.bfloat16
    with np.load(STORED) as stored:
        assert psnr(out, stored["unet/sd1"]) > 30


def test_xl_sizes_survive_bfloat16():
    """Fault 7 of the earlier Flax code: 1023 cast to bfloat16 before the sinusoid is 1024."""
    unet, params, (*_, pooled, sizes) = small("xl")
    half = make_unet(UNETS["xl"], jnp.bfloat16)[0]
    sizes = np.full_like(sizes, 1023)

    def embed(module, sizes):
        call = jax.jit(lambda sizes: module.apply(params, pooled, sizes, method="embed_added"))
        return call(sizes)

    exact = embed(unet, sizes)
    assert relative_error(embed(half, sizes), exact) < 0.02
    assert relative_error(embed(unet, sizes + 1), exact) > 0.1  # what the rounding would do


def test_xl_without_its_conditions_is_an_error():
    unet, params, (sample, timesteps, text, *_) = small("xl")
    with pytest.raises(ValueError, match="pass text_embeds"):
        unet.apply(params, sample, timesteps, text)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"down_block_types": ("AttnDownBlock2D",) * 4},
            "use one of CrossAttnDownBlock2D, DownBlock2D",
        ),
        ({"up_block_types": ("SkipUpBlock2D",) * 4}, "use one of CrossAttnUpBlock2D, UpBlock2D"),
        ({"mid_block_type": "Other"}, "use one of UNetMidBlock2DCrossAttn, UNetMidBlock2D"),
        ({"attention_head_dim": (1, 2)}, "has 2 entries where 4 are expected"),
    ],
)
def test_a_structure_that_is_not_implemented_is_an_error(config, words):
    with pytest.raises(ValueError, match=words):
        make_unet(UNETS["sd1"] | config)


def test_num_attention_heads_overrides_the_historic_name():
    historic = UNet2DConditionModel(attention_head_dim=(5, 10, 20, 20))
    named = UNet2DConditionModel(num_attention_heads=(5, 10, 20, 20), attention_head_dim=64)
    assert historic._levels_down() == named._levels_down()
    assert historic._levels_up() == named._levels_up()
