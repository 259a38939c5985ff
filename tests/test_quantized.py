# SPDX-License-Identifier: MIT
"""Kernels in 8 bits: how far they are from the full ones, and the pictures that they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import checkpoints

from jaxgen.nn import linear, quantized
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import hub

RNG = np.random.default_rng(0)
# of a value that is not the smallest of its feature: half a step of 127, half of the last of 3 bits
BOUNDS = {"int8": 0.5 / 127, "fp8": 2.0**-4}


@pytest.mark.parametrize("kind", sorted(quantized.KINDS))
def test_an_error_is_half_a_step_and_a_feature_has_its_own_scale(kind):
    sizes = 10.0 ** np.arange(-4, 4)  # of 8 features
    kernel = (RNG.normal(size=(3, 3, 50, 8)) * sizes).astype(np.float32)
    kernel[..., 3] = 0
    stored, scale = quantized.quantize(kernel, kind)
    assert stored.dtype.itemsize == 1
    error = np.abs(quantized.dequantize(stored, scale) - kernel).max(axis=(0, 1, 2))
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    assert (error <= BOUNDS[kind] * largest * 1.001).all()
    assert error[3] == 0
    again, _ = quantized.quantize(quantized.dequantize(stored, scale), kind)
    np.testing.assert_array_equal(again, stored)  # what 8 bits hold, they keep


@pytest.mark.parametrize("kind", sorted(quantized.KINDS))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "layer",
    [
        lambda dtype: linear.Dense(7, dtype=dtype),
        lambda dtype: linear.Conv(7, (3, 3), strides=2, dtype=dtype),
        lambda dtype: linear.Conv3x3(7, dtype=dtype),
    ],
    ids=["dense", "conv", "conv3x3"],
)
def test_a_layer_computes_with_the_kernel_that_is_stored(layer, dtype, kind):
    x = RNG.normal(size=(2, 4, 4, 5)).astype(np.float32)
    module = layer(dtype)
    params = module.init(jax.random.key(0), x)["params"]
    stored, scale = quantized.quantize(np.asarray(params["kernel"]), kind)
    in_8_bits = {**params, "kernel": stored, quantized.SCALE: scale}
    full = {**params, "kernel": quantized.dequantize(stored, scale)}
    expected = layer(jnp.float32).apply({"params": full}, x)
    out = module.apply({"params": in_8_bits}, x)
    assert out.dtype == dtype
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance * 3)


@pytest.mark.parametrize("kind", sorted(quantized.KINDS))
def test_large_kernels_alone_are_in_8_bits(kind):
    full = StableDiffusion.from_pretrained(hub.EMBEDDED)
    pipe = StableDiffusion.from_pretrained(hub.EMBEDDED, quantize=kind)
    for name in ("unet", "text_encoder", "vae"):
        leaves, _ = jax.tree_util.tree_flatten_with_path(full.params[name])
        for keys, leaf in leaves:
            module = pipe.params[name]
            for key in keys[:-1]:
                module = module[key.key]
            kept = module[keys[-1].key]
            in_8_bits = name != "vae" and keys[-1].key == "kernel" and leaf.size >= 2**14
            assert kept.dtype.itemsize == (1 if in_8_bits else 4)
            assert (quantized.SCALE in module) == in_8_bits or keys[-1].key != "kernel"
    with pytest.raises(ValueError, match="without quantize"):
        pipe.set_adapters([("style.safetensors", 0.5)])
    with pytest.raises(ValueError, match="without quantize"):
        pipe.save("anywhere")
    pipe.set_adapters([])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("int8", 35), ("fp8", 27)])
def test_pictures_of_8_bits_are_close_to_those_of_full_kernels(kind, least):
    call = {"prompt": ["a large red star", "a small blue ring"], "num_steps": 10, "seed": 1}
    call["guidance_scale"] = 3.0
    full = StableDiffusion.from_pretrained(hub.EMBEDDED)(**call)
    pictures = StableDiffusion.from_pretrained(hub.EMBEDDED, quantize=kind)(**call)
    error = np.mean((pictures.astype(float) - full.astype(float)) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error) > least).all(), 10 * np.log10(255**2 / error)


def test_an_unknown_kind_is_refused_before_the_model_is_opened():
    with pytest.raises(ValueError, match="quantize is 'int4'; use 'int8' or 'fp8', or None"):
        StableDiffusion.from_pretrained("no/such/model", quantize="int4")


def test_programs_of_8_bits_on_a_mesh_draw_what_one_device_draws():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("data", "model"))
    call = {"prompt": "a b", "num_steps": 2, "seed": 3, "output": "latent"}
    one, two = (
        StableDiffusion(checkpoints.checkpoint("sd1"), mesh=m, quantize="int8")(**call)
        for m in (None, mesh)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=2e-5)
