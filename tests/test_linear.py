# SPDX-License-Identifier: MIT
"""The 3x3 convolution as a convolution and as a matrix product; the layers against flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import linen as nn

from jaxgen.nn import linear
from jaxgen.nn.linear import Conv3x3


def correlated(x, kernel, bias):
    """torch.nn.Conv2d with padding=1 by scipy, pair of channels by pair of channels."""
    out = np.zeros((*x.shape[:3], kernel.shape[-1])) + bias
    for b, c, f in np.ndindex(len(x), x.shape[-1], kernel.shape[-1]):
        out[b, ..., f] += scipy.signal.correlate2d(x[b, ..., c], kernel[..., c, f], mode="same")
    return out


# many features on few pixels are a matrix product on CPU
@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (1, 23, 23, 2)])
@pytest.mark.parametrize("features", [5, 512])
def test_conv3x3_is_a_padded_correlation(shape, features):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    kernel = rng.standard_normal((3, 3, shape[-1], features)).astype(np.float32)
    bias = rng.standard_normal(features).astype(np.float32)
    out = jax.jit(Conv3x3(features).apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(out, correlated(x, kernel, bias), rtol=1e-4, atol=1e-4)


def test_both_ways_and_their_gradients_are_equal():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 7))
    weight = jax.random.normal(jax.random.key(2), (2, 4, 3, 7))

    def plain(x, kernel):
        return linear._convolution(x, kernel, (1, 1), linear.SAME)

    def value_and_slopes(way):
        weighted = lambda x, kernel: jnp.sum(weight * way(x, kernel))  # noqa: E731
        return way(x, kernel), *jax.grad(weighted, (0, 1))(x, kernel)

    one, other = map(value_and_slopes, (plain, linear._as_product))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "features", "is_product"),
    [
        ((1, 16, 16, 512), 512, True),
        ((2, 16, 16, 512), 511, False),
        ((1, 32, 32, 512), 512, False),
        ((1, 8, 8, 112), 112, False),  # narrow networks gain nothing
    ],
)
def test_wide_layers_on_few_pixels_are_products_on_cpu(monkeypatch, shape, features, is_product):
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        wanted = is_product and backend == "cpu"
        assert linear._product_is_faster(shape, features) == wanted


@pytest.mark.parametrize(
    ("ours", "flax", "x"),
    [
        (linear.Dense(5), nn.Dense(5), np.ones((2, 3, 4), np.float32)),
        (linear.Dense(5, use_bias=False), nn.Dense(5, use_bias=False), np.ones(4, np.float32)),
        (linear.Conv(5, (3, 3), 2), nn.Conv(5, (3, 3), 2), np.ones((6, 8, 3), np.float32)),
        (
            linear.Conv(2, (4, 4), padding=linear.SAME),
            nn.Conv(2, (4, 4), padding=linear.SAME),
            np.ones((2, 1, 6, 8, 3), np.float32),
        ),
        (linear.Embed(7, 3), nn.Embed(7, 3), np.array([[0, 6], [6, 1]])),
    ],
    ids=["dense", "dense without bias", "convolution", "padded convolution", "embedding"],
)
def test_layers_start_and_compute_as_flax_does(ours, flax, x):
    start = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, start, flax.init(jax.random.key(0), x))
    moved = jax.tree.map(lambda leaf: leaf + 0.5, start)  # biases are zero at the start
    np.testing.assert_array_equal(ours.apply(moved, x), flax.apply(moved, x))
