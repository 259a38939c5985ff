# SPDX-License-Identifier: MIT
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import (
    VAE,
    make_vae,
    norm_epsilons,
    psnr,
    relative_error,
    vae_inputs,
    weights_by_path,
)

STORED = Path(__file__).parent / "data" / "networks.npz"


def small(dtype=jnp.float32):
    vae, shapes = make_vae(VAE, dtype)
    params = {"params": weights_by_path(shapes)}
    encode = jax.jit(lambda x: vae.apply(params, x, method="encode"))
    decode = jax.jit(lambda z: vae.apply(params, z, method="decode"))
    return encode, decode


def test_autoencoder_equals_stored_diffusers_output():
    encode, decode = small()
    x, z = vae_inputs()
    mean, logvar = encode(x)
    with np.load(STORED) as stored:
        assert relative_error(mean, stored["vae/mean"]) < 1e-4
        assert relative_error(logvar, stored["vae/logvar"]) < 1e-4
        assert relative_error(decode(z), stored["vae/image"]) < 1e-4


def test_every_norm_has_the_epsilon_of_diffusers():
    epsilons = norm_epsilons(make_vae(VAE)[0], vae_inputs()[0])
    assert len(epsilons) == 14 + 22  # encoder, decoder
    assert set(epsilons.values()) == {1e-6}


def test_bfloat16_autoencoder_is_close_to_float32():
    encode, decode = small(jnp.bfloat16)
    x, z = vae_inputs()
    mean, logvar = encode(x)
    assert mean.dtype == logvar.dtype == jnp.float32
    with np.load(STORED) as stored:
        assert psnr(mean, stored["vae/mean"]) > 30
        assert psnr(decode(z), stored["vae/image"]) > 30


def test_log_variance_is_clipped_as_diffusers_clips_it():
    vae, shapes = make_vae(VAE)
    params = weights_by_path(shapes)
    params["quant_conv"]["bias"][4:] = (-1000, 1000, -1000, 1000)
    encode = jax.jit(lambda x: vae.apply({"params": params}, x, method="encode"))
    _, logvar = encode(jnp.zeros((1, 8, 8, 3)))
    np.testing.assert_array_equal(logvar[0, 0, 0], [-30, 20, -30, 20])


def test_full_size_autoencoder_has_the_published_parameters():
    config = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    blocks = {k: VAE[k] for k in ("down_block_types", "up_block_types")}
    leaves = jax.tree.leaves(make_vae(config | blocks)[1])
    assert len(leaves) == 248
    assert sum(leaf.size for leaf in leaves) / 1e6 == pytest.approx(83.65, abs=0.005)


@pytest.mark.parametrize(
    "flag", ["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"]
)
def test_parts_can_be_left_out(flag):
    name = {"use_quant_conv": "quant_conv", "use_post_quant_conv": "post_quant_conv"}
    shapes = make_vae(VAE | {flag: False})[1]
    if flag in name:
        assert name[flag] not in shapes
    else:
        assert "attentions_0" not in shapes["encoder"]["mid_block"]
        assert "attentions_0" not in shapes["decoder"]["mid_block"]


def test_block_types_that_are_not_implemented_are_an_error():
    with pytest.raises(ValueError, match="expected 4 times 'UpDecoderBlock2D'"):
        make_vae(VAE | {"up_block_types": ("AttnUpDecoderBlock2D",) * 4})
