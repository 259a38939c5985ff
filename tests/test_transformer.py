# SPDX-License-Identifier: MIT
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import relative_error, shapes_of, weights_by_path

from jaxgen.nn.embeddings import sinusoid
from jaxgen.nn.norm import GroupNorm
from jaxgen.nn.stable_diffusion.resnet import Downsample2D, Upsample2D
from jaxgen.nn.stable_diffusion.transformer import GEGLU, Transformer2DModel


def array(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_gate_is_the_exact_gelu_of_the_second_half():
    """Fault 4 of the earlier Flax code: the tanh approximation in place of erf."""
    x = np.linspace(-5, 5, 41, dtype=np.float32)[:, None]
    kernel = np.array([[1.0, 1.0]], np.float32)  # hidden = gate = x
    params = {"params": {"proj": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}}
    out = GEGLU(1).apply(params, x)
    expected = [value**2 * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x[:, 0]]
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-5, atol=2e-6)

    kernel = np.array([[1.0, 0.0]], np.float32)  # hidden = x, gate = 1
    params = {"params": {"proj": {"kernel": kernel, "bias": np.array([0, 1], np.float32)}}}
    np.testing.assert_allclose(GEGLU(1).apply(params, x), x * 0.841344746, rtol=1e-6)


def test_transformer_norm_has_epsilon_1e_minus_6():
    """Fault 5 of the earlier Flax code: 1e-5, seen where the variance is small."""
    x = 1e-3 * array(2, 4, 4, 8)
    module = Transformer2DModel(channels=8, num_heads=2, num_layers=0, norm_num_groups=1)
    dense = {"kernel": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}
    norm = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    params = {"params": {"norm": norm, "proj_in": dense, "proj_out": dense}}
    out = module.apply(params, x, ())

    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    variance = x.var(axis=(1, 2, 3), keepdims=True)
    assert relative_error(out, x + (x - mean) / np.sqrt(variance + 1e-6)) < 1e-5


def test_group_norm_does_not_cancel_where_the_mean_is_large():
    x = 1000 + array(2, 6, 6, 8)
    params = weights_by_path(shapes_of(GroupNorm(4, 1e-5), x))
    out = GroupNorm(4, 1e-5).apply({"params": params}, x)

    groups = x.astype(np.float64).reshape(2, 36, 4, 2)
    mean = groups.mean(axis=(1, 3), keepdims=True)
    std = np.sqrt(groups.var(axis=(1, 3), keepdims=True) + 1e-5)
    expected = ((groups - mean) / std).reshape(x.shape) * params["scale"] + params["bias"]
    assert relative_error(out, expected) < 1e-4


def test_group_norm_statistics_are_float32_under_bfloat16():
    x = jnp.asarray(3 + array(1, 32, 32, 8), jnp.bfloat16)
    half, full = GroupNorm(2, 1e-5, jnp.bfloat16), GroupNorm(2, 1e-5)
    params = {"params": weights_by_path(shapes_of(full, x))}
    out = half.apply(params, x)
    assert out.dtype == jnp.bfloat16
    expected = full.apply(params, x.astype(jnp.float32))
    np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))


def test_sinusoid_is_cosines_then_sines_from_high_to_low_frequency():
    t = np.array([0.0, 1.0, 946.42])
    out = sinusoid(jnp.asarray(t, jnp.float32), 6)
    angles = t[:, None] * 10000.0 ** -(np.arange(3) / 3)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(out, expected, atol=1e-4)  # float32 of 946 has 6e-5 spacing


def test_sinusoid_is_float32_for_any_input():
    for dtype in (jnp.int32, jnp.bfloat16, jnp.float32):
        assert sinusoid(jnp.ones(3, dtype), 8).dtype == jnp.float32


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_upsampling_repeats_pixels_and_crops_to_the_size_asked_for(size):
    x = array(1, 3, 4, 2)
    identity = np.zeros((3, 3, 2, 2), np.float32)
    identity[1, 1] = np.eye(2)
    params = {"params": {"conv": {"kernel": identity, "bias": np.zeros(2, np.float32)}}}
    out = Upsample2D().apply(params, x, size)
    expected = x.repeat(2, axis=1).repeat(2, axis=2)[:, : size[0], : size[1]]
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize(("before", "start"), [(1, 0), (0, 1)])
def test_downsampling_reads_the_pixels_that_its_padding_says(before, start):
    x = array(1, 6, 6, 1)
    centre = np.zeros((3, 3, 1, 1), np.float32)
    centre[1, 1] = 1
    params = {"params": {"conv": {"kernel": centre, "bias": np.zeros(1, np.float32)}}}
    out = jax.jit(Downsample2D(((before, 1), (before, 1))).apply)(params, x)
    np.testing.assert_allclose(out, x[:, start::2, start::2], rtol=1e-6)
