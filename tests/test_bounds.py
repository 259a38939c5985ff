# SPDX-License-Identifier: MIT
"""Bounds of several samples, and the models that they are bounds of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support import linear_gaussian
from support.gradients import SHAPE, SIZE, decode, encode, gradient_error, image, linear, parameters

from jaxgen.train import latent_models, losses, objectives

LATENT = 2


def one_layer(prior=None):
    prior = latent_models.normal_prior(LATENT) if prior is None else prior
    return latent_models.one_layer(encode, decode, losses.gaussian, prior)


def layer(params, h):
    return jnp.tanh(params["w"] @ h + params["b"])


def two_layers():
    return latent_models.two_layers(
        encode, layer, layer, decode, losses.gaussian, latent_models.normal_prior(1)
    )


def layered_parameters():
    return parameters() | {"encoder_top": linear(2, LATENT, 3), "decoder_top": linear(4, 1, 4)}


def vamp_parameters():
    images = np.random.default_rng(5).uniform(-0.9, 0.9, (3, *SHAPE))
    return parameters() | {"pseudo_inputs": images}


MODELS = {
    "one_layer": (one_layer, parameters),
    "two_layers": (two_layers, layered_parameters),
    "vamp": (lambda: one_layer(latent_models.vamp_prior(encode)), vamp_parameters),
}


def example():
    return {"image": jnp.float32(image()), "step": jnp.int32(0)}


def gradients(loss, params, count):
    """Gradients under `count` keys: leaves [count, ...]."""
    params = jax.tree.map(jnp.float32, params)
    one = jax.grad(lambda p, key: loss(p, example(), key)[0])
    return jax.jit(jax.vmap(one, (None, 0)))(params, jax.random.split(jax.random.key(1), count))


def assert_same_mean(a, b):
    """Within 4.5 standard errors of the difference, for each of the parameters."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        error = np.sqrt((np.var(x, axis=0) + np.var(y, axis=0)) / len(x))
        assert np.all(abs(np.mean(x, axis=0) - np.mean(y, axis=0)) <= 4.5 * error + 1e-5)


# --- bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bound"), [("one_layer", "k_sample"), *((name, "iwae") for name in MODELS)]
)
def test_gradients_of_bounds_equal_finite_differences(name, bound):
    model, params = MODELS[name]
    loss = objectives.bound_loss(
        model(),
        objectives.BOUNDS[bound],
        3,
        losses.linear_warmup(8, 2.0),
        dynamic_binarization=True,
    )
    assert gradient_error(loss, params(), {"image": image(), "step": 3}) < 1e-7


def test_one_sample_has_the_gradient_of_the_elbo_in_expectation():
    """The KL is sampled here and analytic there."""
    sampled = objectives.bound_loss(one_layer(), objectives.iwae, 1)
    analytic = losses.vae_loss(encode, decode, losses.gaussian)
    assert_same_mean(
        gradients(sampled, parameters(), 6000), gradients(analytic, parameters(), 6000)
    )


def test_all_bounds_of_one_sample_are_equal_for_one_key():
    model, params = MODELS["two_layers"]
    params = jax.tree.map(jnp.float32, params())
    values = [
        jax.jit(objectives.bound_loss(model(), bound, 1))(params, example(), jax.random.key(0))[0]
        for bound in objectives.BOUNDS.values()
    ]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_iwae_rises_with_k_to_the_exact_likelihood_and_the_k_sample_bound_stays():
    """A posterior with e^1.5 times the true variance: the gap of one sample is e^1.5 - 2.5 nats."""
    model = latent_models.one_layer(
        linear_gaussian.encode, linear_gaussian.decode, losses.gaussian,
        latent_models.normal_prior(linear_gaussian.LATENT),
    )  # fmt: skip
    params, test = linear_gaussian.model(worse=1.5), linear_gaussian.drawn(1)
    x = {"image": test["images"][0], "step": jnp.int32(0)}

    def gap(bound, k):
        loss = objectives.bound_loss(model, bound, k)
        keys = jax.random.split(jax.random.key(k), 20_000 // k)
        values = jax.jit(jax.vmap(lambda key: loss(params, x, key)[0]))(keys)
        return np.mean(values) - linear_gaussian.exact_nll(test)[0]

    gaps = [gap(objectives.iwae, k) for k in (1, 4, 20, 500)]
    assert gaps[0] == pytest.approx(np.exp(1.5) - 2.5, abs=0.1)
    assert gaps[0] > 1.5 * gaps[1] > 2 * gaps[2] > 0.05
    assert abs(gaps[3]) < 0.02
    assert gap(objectives.k_sample, 20) == pytest.approx(np.exp(1.5) - 2.5, abs=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_dreg_has_the_mean_of_iwae_and_less_variance_for_the_encoder(name):
    """The decoder's gradients are equal for each key; so are the values of the loss."""
    model, params = MODELS[name]
    of = lambda bound: gradients(objectives.bound_loss(model(), bound, 8), params(), 4000)  # noqa: E731
    iwae, dreg = of(objectives.iwae), of(objectives.dreg)

    assert_same_mean(iwae, dreg)
    for part in ("decoder", "log_scale"):
        for x, y in zip(jax.tree.leaves(iwae[part]), jax.tree.leaves(dreg[part]), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
    variance = lambda tree: sum(np.var(x, axis=0).sum() for x in jax.tree.leaves(tree["encoder"]))  # noqa: E731
    assert variance(dreg) < 0.8 * variance(iwae)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dreg_has_the_mean_of_iwae_for_every_weight_of_the_divergence(beta):
    def of(bound):
        loss = objectives.bound_loss(one_layer(), bound, 8, losses.linear_warmup(0, beta))
        return gradients(loss, parameters(), 40_000)

    assert_same_mean(of(objectives.iwae), of(objectives.dreg))


def test_metrics_are_the_parts_of_the_one_sample_bound():
    loss = objectives.bound_loss(one_layer(), objectives.k_sample, 4, losses.linear_warmup(0, 0.5))
    params = jax.tree.map(jnp.float32, parameters())
    value, terms = jax.jit(loss)(params, example(), jax.random.key(0))
    assert set(terms) == {"loss", "recon_nats", "kl_nats", "neg_elbo_nats", "beta"}
    np.testing.assert_allclose(value, terms["recon_nats"] + 0.5 * terms["kl_nats"], rtol=1e-5)
    np.testing.assert_allclose(terms["neg_elbo_nats"], terms["recon_nats"] + terms["kl_nats"])


def test_a_bound_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="a bound of 0 samples; use 1 or more"):
        objectives.bound_loss(one_layer(), objectives.iwae, 0)


# --- models ---------------------------------------------------------------------------------


def test_two_layers_of_linear_gaussians_have_the_marginal_of_their_product():
    """The mean of w is p(x), for any posterior; exact: N(0, W (A A' + s1) W' + s0)."""
    a, w = np.array([[0.8], [-0.5]]), np.random.default_rng(0).standard_normal((SIZE, LATENT))
    linear_map = lambda logvar: lambda m, h: jnp.append(m @ h, jnp.full(len(m), logvar))  # noqa: E731
    model = latent_models.two_layers(
        lambda m, x, label: jnp.append(m @ x.ravel(), jnp.full(LATENT, -1.0)),
        linear_map(0.2), linear_map(-0.7),
        lambda m, z, label: (m @ z).reshape(SHAPE),
        losses.gaussian, latent_models.normal_prior(1),
    )  # fmt: skip
    params = {
        "encoder": np.linalg.pinv(w), "encoder_top": a.T / 2, "decoder_top": a, "decoder": w,
        "log_scale": np.zeros(2),
    }  # fmt: skip
    params, x = jax.tree.map(jnp.float32, params), example()["image"]

    def log_weight(key):
        return latent_models.log_weight(model, params, key, x, None)

    log_w = jax.jit(jax.vmap(log_weight))(jax.random.split(jax.random.key(0), 50_000))
    shares = np.exp(np.float64(log_w) - np.max(log_w))
    estimate = np.log(shares.mean()) + float(np.max(log_w))
    covariance = w @ (a @ a.T + np.exp(-0.7) * np.eye(LATENT)) @ w.T + np.eye(SIZE)
    exact = scipy.stats.multivariate_normal(np.zeros(SIZE), covariance).logpdf(np.ravel(x))
    error = shares.std() / shares.mean() / 50_000**0.5
    assert error < 0.02
    assert abs(estimate - exact) < 4 * error


@pytest.mark.parametrize("name", MODELS)
def test_draws_of_the_prior_have_its_density(name):
    """The mean of exp(log p(z) - log q(z)) over any q is 1; and p's draws are those of p: their
    average of a bounded function equals its integral under p by importance weights."""
    model, params = MODELS[name]
    params, model = jax.tree.map(jnp.float32, params()), model()
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.jit(jax.vmap(lambda key: model.generate(params, key)))(keys)

    def weighted(key):
        """z from a wide Gaussian around the prior, and its weight."""
        flat = 1.5 * jax.random.normal(key, (LATENT + (name == "two_layers"),))
        z = (flat[:LATENT], flat[LATENT:]) if name == "two_layers" else flat
        proposal = jnp.sum(jax.scipy.stats.norm.logpdf(flat, scale=1.5))
        return flat[:LATENT], jnp.exp(model.log_prior(params, z) - proposal)

    z, weight = jax.jit(jax.vmap(weighted))(jax.random.split(jax.random.key(1), 20_000))
    assert np.mean(weight) == pytest.approx(1, abs=4 * float(np.std(weight)) / 20_000**0.5)
    for function in (np.tanh, np.cos):
        terms = np.asarray(function(z)) * np.asarray(weight)[:, None]
        error = np.sqrt((np.var(terms, axis=0) + np.var(function(draws), axis=0)) / 20_000)
        assert np.all(abs(terms.mean(axis=0) - function(draws).mean(axis=0)) < 4.5 * error)


def test_the_encoder_runs_once_for_all_draws_and_once_backwards():
    """Of a layer's weights a loss has two products, forward and for their gradient: here as many
    for ten draws as for one, since pixels need no gradient."""

    def encoder_products(count):
        loss = objectives.bound_loss(one_layer(), objectives.iwae, count)
        of = lambda p: loss(p, example(), jax.random.key(0))[0]  # noqa: E731
        text = jax.jit(jax.grad(of)).lower(jax.tree.map(jnp.float32, parameters())).as_text()
        sides = f"{2 * LATENT}x{SIZE}"
        return sum("dot_general" in line and sides in line for line in text.splitlines())

    assert encoder_products(1) == encoder_products(10) == 2
