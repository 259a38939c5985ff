# SPDX-License-Identifier: MIT
"""Kernels in 8 bits: how far they are from the full ones, and the pictures that they draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from support import checkpoints

from jaxgen.nn import linear, quantized
from jaxgen.stable_diffusion import loading
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


def integer_layer(features=7, dtype=jnp.float32):
    """A dense layer whose product is of integers, its parameters, and its kernel in float64."""
    stored = RNG.integers(-127, 128, (50, features)).astype(np.int8)
    scale = RNG.uniform(0.5, 2, features).astype(np.float32)
    layer = linear.Dense(features, use_bias=False, dtype=dtype)
    params = {"kernel": stored, quantized.PRODUCT_SCALE: scale}
    kernel = stored * np.float64(quantized.UNITS["int8"]) * scale
    return lambda x: layer.apply({"params": params}, jnp.asarray(x, dtype)), kernel


def test_rows_of_whole_steps_have_exact_products_of_integers():
    layer, kernel = integer_layer()
    rows = RNG.integers(-127, 128, (2, 4, 50))
    rows[..., 0] = 127  # so that a step of each is its unit
    units = 2.0 ** RNG.integers(-9, 9, (2, 4, 1))
    np.testing.assert_allclose(layer(rows * units), (rows * units) @ kernel, rtol=3e-7)
    assert not layer(np.zeros((3, 50))).any()
    text = jax.jit(layer).lower(jnp.ones((4, 50))).as_text()
    assert "(tensor<4x50xi8>, tensor<50x7xi8>) -> tensor<4x7xi32>" in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_error_of_a_product_of_integers_is_half_a_step_of_its_row(dtype):
    layer, kernel = integer_layer(dtype=dtype)
    x = np.asarray(jnp.asarray(RNG.normal(size=(8, 50)), dtype), np.float64)
    expected, out = x @ kernel, np.asarray(layer(x), np.float64)
    half = np.abs(x).max(axis=-1, keepdims=True) / 127 / 2
    bound = half * np.abs(kernel).sum(axis=0) + float(jnp.finfo(dtype).eps) * np.abs(expected)
    assert (np.abs(out - expected) <= bound).all()
    assert np.abs(out - expected).max() > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_in_its_row_alone(value):
    layer, _ = integer_layer()
    x = RNG.normal(size=(3, 50)).astype(np.float32)
    whole = layer(x)
    x[1, 4] = value
    out = np.asarray(layer(x))
    assert not np.isfinite(out[1]).any()
    np.testing.assert_array_equal(out[[0, 2]], whole[np.array([0, 2])])


def test_w8a8_is_for_the_dense_layers_of_the_unet(monkeypatch):
    monkeypatch.setattr(loading, "QUANTIZED_FROM", 1)
    checkpoint = checkpoints.checkpoint("sd1")
    params = loading.load(checkpoint, loading.networks(checkpoint), quantize="w8a8")
    for name, tree in params.items():
        leaves = traverse_util.flatten_dict(tree)
        for path in (path for path in leaves if path[-1] == "kernel"):
            names = {own[-1] for own in leaves if own[:-1] == path[:-1]} - {"kernel", "bias"}
            scale = "kernel_scale"
            if name == "unet" and leaves[path].ndim == 2:
                scale = "product_scale"
            assert names == (set() if name == "vae" else {scale}), path


def test_a_model_without_large_kernels_is_not_called_quantized():
    with pytest.raises(ValueError, match="no kernel of this model has the 16,384 entries"):
        StableDiffusion(checkpoints.small(), quantize="int8")


@pytest.mark.parametrize("kind", sorted(quantized.KINDS))
def test_the_smallest_and_largest_values_have_scales_or_are_refused(kind):
    kernel = np.float32([[1e-45, 1e-20, 1e29, 0], [0, 0, -1e28, 0]])
    stored, scale = quantized.quantize(kernel, kind)
    assert np.isfinite(scale).all()
    back = quantized.dequantize(stored, scale)
    np.testing.assert_allclose(back, kernel, rtol=0.07, atol=1e-30)
    with pytest.raises(ValueError, match="a kernel has values of 3.4.*; 8 bits need less than 1e"):
        quantized.quantize(np.float32([[3.4e38]]), kind)


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
    pipe.set_adapters([])


@functools.cache
def pictures(kind):
    call = {"prompt": ["a large red star", "a small blue ring"], "num_steps": 10, "seed": 1}
    pipe = StableDiffusion.from_pretrained(hub.EMBEDDED, quantize=kind)
    return pipe(**call, guidance_scale=3.0).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("int8", 35), ("fp8", 27), ("w8a8", 35)])
def test_pictures_of_8_bits_are_close_to_those_of_full_kernels(kind, least):
    error = np.mean((pictures(kind) - pictures(None)) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error) > least).all(), 10 * np.log10(255**2 / error)


def test_an_unknown_kind_is_refused_before_the_model_is_opened():
    with pytest.raises(
        ValueError, match="quantize is 'int4'; use 'int8' or 'fp8' or 'w8a8', or None"
    ):
        StableDiffusion.from_pretrained("no/such/model", quantize="int4")


@pytest.mark.slow
def test_programs_of_8_bits_on_a_mesh_draw_what_one_device_draws():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(1, 2), ("data", "model"))
    call = {"prompt": "a b", "num_steps": 2, "seed": 3, "output": "latent"}
    one, two = (
        StableDiffusion(checkpoints.checkpoint("sd1"), mesh=m, quantize="int8")(**call)
        for m in (None, mesh)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=2e-5)
