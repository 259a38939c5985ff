# SPDX-License-Identifier: MIT
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.cluster import KMeans

from jaxgen.nn import autoencoder, functional
from jaxgen.train import step, vector_quantized
from jaxgen.train.vector_quantized import Codebook

K, D = 4, 2


def show(params, x, label):
    """An encoder or decoder that scales its input."""
    return params * x


def book(vectors, counts=None):
    counts = np.ones(len(vectors)) if counts is None else np.asarray(counts)
    parts = (vectors, counts, vectors * counts[:, None])
    return Codebook(*map(jnp.float32, parts))


def points(size=30, seed=0):
    """Points [size, 1, 1, D] of K clusters, and a start for them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((K, D)) * 3
    x = centres[rng.integers(0, K, size)] + 0.3 * rng.standard_normal((size, D))
    return x.astype(np.float32).reshape(size, 1, 1, D), centres + 0.5 * rng.standard_normal((K, D))


def updated(x, codebook, decay=0.0, **options):
    """The codebook and the metrics after one step on the points."""
    tx = vector_quantized.optimizer(optax.sgd(0.0), decay, **options)
    params = {"encoder": jnp.ones(()), "decoder": jnp.ones(()), "codebook": codebook}
    one = step.gradient_step(vector_quantized.vq_loss(show, show), tx)
    state, metrics = jax.jit(one)(step.init_state(params, tx), {"image": x}, jax.random.key(0))
    return state.params["codebook"], metrics


def test_nearest_vectors_are_those_of_the_distance_matrix():
    x, start = points()
    distances = np.linalg.norm(x[..., None, :] - start, axis=-1)
    got = vector_quantized.nearest(jnp.float32(start), jnp.asarray(x))
    np.testing.assert_array_equal(got, distances.argmin(axis=-1))


def test_a_step_without_memory_is_a_step_of_k_means():
    x, start = points()
    with warnings.catch_warnings(action="ignore"):  # it has not converged, as it should
        one = KMeans(K, init=start, n_init=1, max_iter=1, algorithm="lloyd").fit(x.reshape(-1, D))
    codebook, _ = updated(x, book(start), restart_below=0.0)
    np.testing.assert_allclose(codebook.vectors, one.cluster_centers_, rtol=1e-4)


def test_a_codebook_is_the_quotient_of_its_moving_averages():
    x, start = points()
    numbers = np.asarray(vector_quantized.nearest(jnp.float32(start), jnp.asarray(x))).ravel()
    chosen = np.eye(K)[numbers]
    counts = 0.9 * 1 + 0.1 * chosen.mean(axis=0)
    sums = 0.9 * start + 0.1 * chosen.T @ x.reshape(-1, D) / len(x)
    codebook, _ = updated(x, book(start), 0.9)
    np.testing.assert_allclose(codebook.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(codebook.vectors, sums / counts[:, None], rtol=1e-4)


def test_a_dead_vector_becomes_an_output_of_the_encoder_and_others_stay():
    x, start = points()
    start[2] = 100.0  # far from all
    codebook, _ = updated(x, book(start, [1, 1, 0.001, 1]), 0.9)
    assert np.min(np.linalg.norm(x.reshape(-1, D) - np.asarray(codebook.vectors[2]), axis=1)) < 1e-5
    assert float(codebook.counts[2]) == pytest.approx(1 / K)  # an equal share of one place
    kept, _ = updated(x, book(start, [1, 1, 0.001, 1]), 0.9, restart_below=0.0)
    np.testing.assert_allclose(kept.vectors[2], start[2], rtol=1e-4)
    np.testing.assert_array_equal(kept.vectors[:2], codebook.vectors[:2])


def test_perplexity_is_the_number_of_vectors_that_are_used_alike():
    start = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0]])
    for used in (1, 2, 4):
        x = np.repeat(start[:used], 4 // used, axis=0).reshape(4, 1, 1, D).astype(np.float32)
        _, metrics = updated(x, book(start))
        assert float(metrics["perplexity"]) == pytest.approx(used, rel=1e-5)
        assert float(metrics["loss"]) == pytest.approx(0, abs=1e-6)


def test_gradients_pass_straight_through_and_leave_the_vectors_alone():
    """x = 1.2 is read as e = 1. With z = a x and x_hat = b z, the slope of (x - b e)^2 by a is that
    at e, -2 (x - b e) b x, and the commitment adds 2 c (z - e) x."""
    x, a, b, c = 1.2, 1.0, 0.5, 0.25
    codebook = book(np.array([[1.0], [5.0]]))
    loss = vector_quantized.vq_loss(show, show, c)
    params = {"encoder": jnp.float32(a), "decoder": jnp.float32(b), "codebook": codebook}
    example = {"image": jnp.full((1, 1, 1), x), "step": 0}
    value, grads = jax.value_and_grad(lambda p: loss(p, example, jax.random.key(0))[0])(params)
    assert float(value) == pytest.approx((x - b) ** 2 + c * 0.04, rel=1e-5)
    assert float(grads["encoder"]) == pytest.approx(
        -2 * (x - b) * b * x + 2 * c * 0.2 * x, rel=1e-5
    )
    assert float(grads["decoder"]) == pytest.approx(-2 * (x - b), rel=1e-5)
    np.testing.assert_array_equal(grads["codebook"].counts, [1, 0])  # statistics, no slopes
    np.testing.assert_allclose(grads["codebook"].sums, [[x], [0]])


def test_maps_are_halved_and_doubled_as_often_as_asked():
    key, x = jax.random.key(0), jnp.zeros((12, 8, 3))
    for stages, side in ((1, (6, 4)), (2, (3, 2))):
        encoder = autoencoder.MapEncoder(D, 4, stages)
        decoder = autoencoder.MapDecoder(3, 4, stages)
        z, _ = jax.eval_shape(encoder.init_with_output, key, x)
        assert z.shape == (*side, D)
        assert jax.eval_shape(decoder.init_with_output, key, z)[0].shape == x.shape
    with pytest.raises(ValueError, match="12x8 is no multiple of 8: use --stages"):
        functional.init(autoencoder.MapEncoder(D, 4, 3), key, x)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="a commitment of weight -1; use 0"):
        vector_quantized.vq_loss(show, show, -1)
    with pytest.raises(ValueError, match="decay of 1; use 0 to below 1"):
        vector_quantized.optimizer(optax.sgd(0.0), 1)
    with pytest.raises(ValueError, match="restarts below 2 of an equal share"):
        vector_quantized.optimizer(optax.sgd(0.0), 0.9, 2)
