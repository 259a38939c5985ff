# SPDX-License-Identifier: MIT
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from support.gradients import SHAPE, SIZE, decode, encode, gradient_error, image, linear, parameters

from jaxgen.train import latent_losses, losses

# --- parts of the equations -----------------------------------------------------------------


def test_reparameterized_draws_have_the_asked_mean_and_variance():
    mean, logvar = jnp.array([-1.0, 0.5]), jnp.log(jnp.array([0.25, 4.0]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    z = jax.jit(jax.vmap(lambda k: losses.reparameterize(k, mean, logvar)))(keys)

    std = np.array([0.5, 2.0])
    # 4 standard errors: std / sqrt(n) of a mean, var * sqrt(2 / n) of a variance
    assert np.all(abs(np.mean(z, 0) - mean) < 4 * std / 20_000**0.5)
    assert np.all(abs(np.var(z, 0) - std**2) < 4 * std**2 * (2 / 20_000) ** 0.5)
    assert scipy.stats.kstest((z[:, 1] - 0.5) / 2, "norm").pvalue > 1e-3


def test_gradient_flows_through_the_draw_to_mean_and_logvar():
    """dz/dmean = 1 and dz/dlogvar = (z - mean) / 2."""
    mean, logvar = jnp.array([-1.0, 0.5, 2.0]), jnp.array([-2.0, 0.1, 1.0])
    key = lambda: jax.random.key(1)  # noqa: E731
    z = losses.reparameterize(key(), mean, logvar)
    slope = jax.jacobian(lambda m, v: losses.reparameterize(key(), m, v), argnums=(0, 1))
    by_mean, by_logvar = slope(mean, logvar)
    np.testing.assert_allclose(by_mean, np.eye(3))
    np.testing.assert_allclose(by_logvar, np.diag((z - mean) / 2), atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.5)])
def test_kl_equals_the_integral_of_its_definition(mean, std):
    q, p = scipy.stats.norm(mean, std), scipy.stats.norm()
    z = np.linspace(mean - 12 * std, mean + 12 * std, 20_001)
    integral = np.trapezoid(q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), z)
    kl = losses.kl_divergence(jnp.array([mean]), jnp.array([2 * np.log(std)]))
    np.testing.assert_allclose(kl, integral, rtol=1e-5, atol=1e-6)


def test_kl_is_summed_over_the_last_axis_only():
    mean, logvar = np.random.default_rng(0).standard_normal((2, 5, 3), np.float32)
    kl = losses.kl_divergence(mean, logvar)
    ones = losses.kl_divergence(mean[..., None], logvar[..., None])
    np.testing.assert_allclose(kl, ones.sum(-1), rtol=1e-5)


def test_gaussian_log_density_equals_scipy():
    x, mean, logvar = np.random.default_rng(0).standard_normal((3, 5, 4), np.float32)
    expected = scipy.stats.norm.logpdf(x, mean, np.exp(logvar / 2)).sum(-1)
    np.testing.assert_allclose(losses.gaussian_log_density(x, mean, logvar), expected, rtol=1e-5)


def test_binarized_pixels_are_minus_one_or_one_with_the_mean_of_the_pixel():
    x = jnp.array([-1.0, -0.4, 0.0, 0.8, 1.0])
    keys = jax.random.split(jax.random.key(0), 10_000)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: losses.binarize(k, x)))(keys))
    assert set(np.unique(draws)) == {-1.0, 1.0}
    np.testing.assert_allclose(draws.mean(0), x, atol=4 / 10_000**0.5)
    np.testing.assert_array_equal(draws[:, [0, 4]], np.broadcast_to([-1.0, 1.0], (10_000, 2)))


def test_warmup_rises_linearly_to_its_final_weight_and_stays():
    weight = jax.jit(losses.linear_warmup(10, final=4.0))
    assert [float(weight(jnp.int32(s))) for s in (0, 1, 5, 10, 1000)] == pytest.approx(
        [0, 0.4, 2, 4, 4]
    )


def test_no_warmup_is_the_final_weight_from_step_0():
    weight = jax.jit(losses.linear_warmup(0, final=0.5))
    assert [float(weight(jnp.int32(s))) for s in (0, 1, 7)] == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="warm-up of -1 steps; use 0"):
        losses.linear_warmup(-1)


# --- likelihoods ----------------------------------------------------------------------------


def test_bernoulli_equals_scipy_on_binary_pixels():
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal(SHAPE).astype(np.float32)
    bits = rng.integers(0, 2, SHAPE)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = scipy.stats.bernoulli.logpmf(bits, probability).sum()
    got = losses.bernoulli({}, jnp.asarray(logits), jnp.asarray(2.0 * bits - 1, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_bernoulli_stays_finite_at_extreme_logits():
    logits, x = jnp.array([200.0, -200.0]), jnp.array([-1.0, 1.0])
    np.testing.assert_allclose(losses.bernoulli({}, logits, x), -400.0)
    np.testing.assert_allclose(losses.bernoulli({}, logits, -x), 0.0)


def test_gaussian_equals_scipy_with_one_scale_per_channel():
    rng = np.random.default_rng(0)
    mean, x = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    log_scale = np.array([-1.0, 0.5], np.float32)
    expected = scipy.stats.norm.logpdf(x, mean, np.exp(log_scale)).sum()
    np.testing.assert_allclose(
        losses.gaussian({"log_scale": log_scale}, mean, x), expected, rtol=1e-5
    )


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -2.0, 0.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.013, 0.9])
def test_logistic_probabilities_of_the_256_levels_sum_to_one(mean, log_scale):
    levels = np.arange(256, dtype=np.float32) / 127.5 - 1
    params = {"log_scale": jnp.array([log_scale])}
    log_p = jax.jit(jax.vmap(lambda x: losses.logistic(params, jnp.full((1,), mean), x)))(
        levels[:, None]
    )
    # float32 logarithms of up to 1e3 nats: relative error of a probability near 1e-4 at worst
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(), 1.0, atol=2e-4)


def test_logistic_equals_differences_of_the_distribution_function():
    levels = np.arange(0, 256, 5, dtype=np.float64) / 127.5 - 1
    mean, scale = 0.2, np.exp(-2.0)
    cdf = lambda x: scipy.stats.logistic.cdf(x, mean, scale)  # noqa: E731
    upper = np.where(levels > 1 - 1e-6, 1.0, cdf(levels + 1 / 255))
    lower = np.where(levels < -1 + 1e-6, 0.0, cdf(levels - 1 / 255))
    params = {"log_scale": jnp.array([-2.0])}
    got = [
        losses.logistic(params, jnp.array([mean]), jnp.array([x]))
        for x in levels.astype(np.float32)
    ]
    np.testing.assert_allclose(got, np.log(upper - lower), rtol=2e-5, atol=2e-4)


def test_logistic_has_finite_slopes_far_from_the_data():
    """At 2,000 scales from the mean the difference of sigmoids itself is 0 in float32."""
    x = jnp.array([[-1.0], [0.0], [1.0]])
    for mean in (-1.0, 1.0):
        slope = jax.grad(lambda p, m: losses.logistic(p, m, x), argnums=(0, 1))
        grads = slope({"log_scale": jnp.array([-7.0])}, jnp.full((3, 1), mean))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        assert np.any(np.abs(grads[1]) > 100)


@pytest.mark.parametrize("name", losses.LIKELIHOODS)
def test_the_mean_of_a_likelihood_is_the_most_probable_grey_image(name):
    """Its slope in the decoder's output vanishes where the image is the mean."""
    pixels = losses.LIKELIHOODS[name]
    output = jnp.linspace(-0.8, 0.8, 12).reshape(2, 2, 3)
    params = {"log_scale": jnp.full(3, -1.0)} if pixels.learns_scale else {}
    slope = jax.grad(lambda o: pixels.log_likelihood(params, o, pixels.mean(output)))(output)
    np.testing.assert_allclose(slope, 0, atol=1e-5)


# --- objectives -----------------------------------------------------------------------------


@pytest.mark.parametrize("reconstruction", ["mse", "bernoulli"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_autoencoder_gradient_equals_finite_differences(reconstruction, noise):
    loss = losses.autoencoder_loss(encode, decode, reconstruction, noise)
    params = parameters(outputs=2)
    params.pop("log_scale")
    assert gradient_error(loss, params, {"image": image()}) < 1e-7


@pytest.mark.parametrize("name", losses.LIKELIHOODS)
@pytest.mark.parametrize("binarized", [False, True])
def test_vae_gradient_equals_finite_differences(name, binarized):
    loss = losses.vae_loss(
        encode,
        decode,
        losses.LIKELIHOODS[name].log_likelihood,
        losses.linear_warmup(8, 2.0),
        binarized,
    )
    assert gradient_error(loss, parameters(), {"image": image(), "step": 3}) < 1e-7


def test_classifier_gradient_equals_finite_differences():
    loss = losses.classifier_loss(lambda params, x: params["w"] @ x.ravel() + params["b"])
    assert gradient_error(loss, linear(5, SIZE, 0), {"image": image(), "label": 3}) < 1e-7


def test_classifier_loss_of_equal_logits_is_log_of_the_number_of_classes():
    loss = losses.classifier_loss(lambda params, x: jnp.zeros(10))
    nats, metrics = loss({}, {"image": jnp.zeros(SHAPE), "label": jnp.int32(4)}, jax.random.key(0))
    np.testing.assert_allclose(nats, np.log(10), rtol=1e-6)
    assert float(metrics["accuracy"]) == 0.0  # the first of equals is named


def test_mse_of_a_constant_reconstruction_is_the_mean_squared_pixel():
    x = jnp.asarray(image(), jnp.float32)
    loss = losses.autoencoder_loss(lambda p, x, y: x, lambda p, z, y: jnp.zeros(SHAPE))
    value, metrics = loss({"encoder": (), "decoder": ()}, {"image": x}, jax.random.key(0))
    np.testing.assert_allclose(value, np.mean(np.square(x)), rtol=1e-6)
    assert metrics["loss"] is metrics["mse"]


def test_denoising_corrupts_the_input_and_asks_for_the_clean_image():
    """With identity networks the error is the noise itself: mean square 0.5^2, fresh per key."""
    x = jnp.zeros((20, 20, 1))
    loss = losses.autoencoder_loss(lambda p, x, y: x, lambda p, z, y: z, noise=0.5)
    keys = jax.random.split(jax.random.key(0), 50)
    params = {"encoder": (), "decoder": ()}
    values = jax.jit(jax.vmap(lambda k: loss(params, {"image": x}, k)[0]))(keys)
    assert np.mean(values) == pytest.approx(0.25, rel=4 * (2 / 20_000) ** 0.5)
    assert len(np.unique(values)) == 50


def test_loss_adds_beta_times_kl_and_the_bound_does_not():
    loss = jax.jit(
        losses.vae_loss(encode, decode, losses.bernoulli, losses.linear_warmup(10, final=4.0))
    )
    params = jax.tree.map(jnp.float32, parameters())
    total, terms = loss(
        params, {"image": jnp.float32(image()), "step": jnp.int32(5)}, jax.random.key(0)
    )
    assert float(terms["beta"]) == 2.0
    np.testing.assert_allclose(total, terms["recon_nats"] + 2 * terms["kl_nats"], rtol=1e-6)
    np.testing.assert_allclose(
        terms["neg_elbo_nats"], terms["recon_nats"] + terms["kl_nats"], rtol=1e-6
    )
    np.testing.assert_allclose(terms["loss"], total)
    assert set(terms) == {"loss", "recon_nats", "kl_nats", "neg_elbo_nats", "beta"}


def test_all_terms_are_scalars_that_read_only_the_example():
    """One example and one key in, float32 scalars out: lifted by vmap, it sees no neighbour."""
    loss = losses.vae_loss(encode, decode, losses.logistic, dynamic_binarization=True)
    params = jax.tree.map(jnp.float32, parameters())
    images = jnp.stack([jnp.float32(image(seed)) for seed in range(3)])
    keys = lambda: jax.random.split(jax.random.key(0), 3)  # noqa: E731
    steps = jnp.zeros(3, jnp.int32)
    batch, _ = jax.jit(jax.vmap(loss, (None, 0, 0)))(
        params, {"image": images, "step": steps}, keys()
    )
    assert batch.dtype == jnp.float32
    for i in range(3):
        alone, _ = jax.jit(loss)(params, {"image": images[i], "step": steps[i]}, keys()[i])
        np.testing.assert_allclose(batch[i], alone, rtol=1e-5)


def test_log_weight_minus_bound_is_the_gap_between_draw_and_expected_kl():
    """For one draw: log w = log p(x|z) + log p(z) - log q(z|x), by scipy's densities."""
    params = jax.tree.map(jnp.float32, parameters())
    x = jnp.float32(image())
    weight = losses.log_weight(encode, decode, losses.gaussian)
    got = jax.jit(weight)(params, x, None, jax.random.key(7))

    mean, logvar = np.split(np.asarray(encode(params["encoder"], x, None), np.float64), 2)
    z = mean + np.exp(logvar / 2) * np.asarray(jax.random.normal(jax.random.key(7), (2,)))
    output = np.asarray(decode(params["decoder"], z.astype(np.float32), None))
    expected = (
        scipy.stats.norm.logpdf(x, output, np.exp(params["log_scale"])).sum()
        + scipy.stats.norm.logpdf(z).sum()
        - scipy.stats.norm.logpdf(z, mean, np.exp(logvar / 2)).sum()
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_objectives_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="unknown reconstruction 'mae'; use mse or bernoulli"):
        losses.autoencoder_loss(encode, decode, "mae")
    with pytest.raises(ValueError, match=r"noise of standard deviation -0\.1; use 0"):
        losses.autoencoder_loss(encode, decode, noise=-0.1)


# --- latent diffusion -----------------------------------------------------------------------

ALPHAS = np.array([0.9, 0.5, 0.1])  # alphas_cumprod of three times
EMPTY, FULL = np.array([0, 0], np.int32), np.array([1, 2], np.int32)
PARAMS = {"unet": (), "text_encoder": ()}


def test_first_stage_adds_both_errors_and_the_mean_kl():
    """Off by 1/4 everywhere, from N(1, 1): KL 1/2 for each of the 16 entries of the latent."""
    x = jnp.asarray(image(), jnp.float32)
    moments = jnp.ones((2, 2, 4)), jnp.zeros((2, 2, 4))
    loss = latent_losses.autoencoder_kl_loss(
        lambda p, x: moments, lambda p, z: x - 0.25, kl_weight=0.2
    )
    total, terms = loss({}, {"image": x}, jax.random.key(0))
    expected = {"loss": 0.25 + 0.0625 + 0.2 * 0.5, "l1": 0.25, "mse": 0.0625, "kl_nats": 8.0}
    found = {name: float(value) for name, value in terms.items()}
    assert found == pytest.approx(expected | {"edges": 0.0}, abs=1e-6)
    assert float(total) == pytest.approx(expected["loss"])


def test_errors_that_change_between_neighbours_cost_their_slopes():
    """An error that rises by 0.1 from row to row and falls by 0.3 from column to column."""
    x = jnp.zeros((5, 4, 2))
    ramp = 0.1 * np.arange(5.0)[:, None, None] - 0.3 * np.arange(4.0)[:, None] + np.zeros(2)
    moments = jnp.zeros((2, 2, 4)), jnp.zeros((2, 2, 4))
    values = {}
    for weight in (0.0, 2.0):
        loss = latent_losses.autoencoder_kl_loss(
            lambda p, x: moments, lambda p, z: jnp.float32(-ramp), 0.0, weight
        )
        values[weight], terms = loss({}, {"image": x}, jax.random.key(0))
        assert float(terms["edges"]) == pytest.approx(0.4, rel=1e-5)
    assert float(values[0.0]) == pytest.approx(np.abs(ramp).mean() + (ramp**2).mean(), rel=1e-5)
    assert float(values[2.0] - values[0.0]) == pytest.approx(0.8, rel=1e-5)


def test_first_stage_decodes_a_draw_of_the_posterior():
    """Identity networks with a deviation of 0.3: the squared error is 0.09 and l1 its half-normal
    mean, 0.3 sqrt(2 / pi)."""
    x = jnp.zeros((20, 20, 1))
    loss = latent_losses.autoencoder_kl_loss(
        lambda p, x: (x, jnp.full_like(x, 2 * np.log(0.3))), lambda p, z: z, 0.0
    )
    keys = jax.random.split(jax.random.key(0), 50)
    _, terms = jax.jit(jax.vmap(lambda key: loss({}, {"image": x}, key)))(keys)
    assert np.mean(terms["mse"]) == pytest.approx(0.09, rel=4 * (2 / 20_000) ** 0.5)
    assert np.mean(terms["l1"]) == pytest.approx(0.3 * (2 / np.pi) ** 0.5, rel=0.03)
    assert len(np.unique(terms["mse"])) == 50


def test_first_stage_gradient_equals_finite_differences():
    def moments(params, x):
        return jnp.split(encode(params["encoder"], x, None).reshape(2, 2), 2, axis=-1)

    loss = latent_losses.autoencoder_kl_loss(
        moments, lambda params, z: decode(params["decoder"], z.ravel(), None), 0.3, 0.7
    )
    params = parameters()
    params.pop("log_scale")
    assert gradient_error(loss, params, {"image": image()}) < 1e-7


def diffusion(predict, prediction_type, mean, logvar, dropout=0.0, count=400, alphas=ALPHAS):
    """Losses [count] of one example under `count` keys; `predict` takes (x_t, t, context)."""
    loss = latent_losses.diffusion_loss(
        lambda params, *inputs: predict(*inputs), lambda params, ids: ids[None].astype(float),
        alphas, prediction_type, EMPTY, dropout,
    )  # fmt: skip
    posterior = np.concatenate([np.full((4, 4, 2), v, np.float16) for v in (mean, logvar)], -1)
    example = {"posterior": jnp.asarray(posterior), "ids": jnp.asarray(FULL)}
    keys = jax.random.split(jax.random.key(5), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: loss(PARAMS, example, key)[0]))(keys))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_predicting_nothing_costs_the_variance_of_the_target(prediction_type):
    """1 for eps; for v, on average over t, a^2 + b^2 E z^2 with z from N(0.5, 4)."""
    found = diffusion(lambda x_t, t, context: 0 * x_t, prediction_type, 0.5, np.log(4.0))
    squared = np.mean(ALPHAS) + np.mean(1 - ALPHAS) * (4 + 0.25)
    expected = 1.0 if prediction_type == "epsilon" else squared
    standard_error = found.std() / 400**0.5
    assert abs(found.mean() - expected) < 4 * standard_error
    assert standard_error < 0.05 * expected  # so that the line above says something


def known(x_t, t, z):
    """eps and v of a noisy latent whose clean one is known."""
    a, b = np.float32(ALPHAS**0.5), np.float32((1 - ALPHAS) ** 0.5)
    eps = (x_t - jnp.asarray(a)[t] * z) / jnp.asarray(b)[t]
    return eps, jnp.asarray(a)[t] * eps - jnp.asarray(b)[t] * z


@pytest.mark.parametrize(("prediction_type", "which"), [("epsilon", 0), ("v_prediction", 1)])
def test_a_model_that_knows_the_clean_latent_has_no_loss(prediction_type, which):
    perfect = lambda x_t, t, context: known(x_t, t, 1.5)[which]  # noqa: E731
    other = lambda x_t, t, context: known(x_t, t, 1.5)[1 - which]  # noqa: E731
    assert diffusion(perfect, prediction_type, 1.5, -30.0).max() < 1e-9
    assert diffusion(other, prediction_type, 1.5, -30.0).min() > 0.01


def test_the_losses_of_both_predictions_are_one_times_the_signal():
    """eps = a v + b x_t: a model of v, read as one of eps, errs by a times as much."""
    alpha = np.array([0.36])
    v = lambda x_t, t, context: jnp.tanh(x_t)  # noqa: E731
    eps = lambda x_t, t, context: 0.6 * jnp.tanh(x_t) + 0.8 * x_t  # noqa: E731
    of_v = diffusion(v, "v_prediction", 0.5, -1.0, count=9, alphas=alpha)
    of_eps = diffusion(eps, "epsilon", 0.5, -1.0, count=9, alphas=alpha)
    np.testing.assert_allclose(of_eps, 0.36 * of_v, rtol=1e-4)


def test_times_are_drawn_uniformly_from_all():
    found = diffusion(lambda x_t, t, c: known(x_t, t, 0.0)[0] + t, "epsilon", 0.0, -30.0)
    counts = np.bincount(np.rint(found).astype(int), minlength=5)
    assert counts[[2, 3]].sum() == 0
    assert scipy.stats.chisquare(counts[[0, 1, 4]]).pvalue > 1e-4  # t^2


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_so_many_captions_are_replaced_by_the_empty_one(dropout):
    """The model errs by the last token: 2 in the caption and 0 in the empty one."""
    erring = lambda x_t, t, c: known(x_t, t, 0.0)[0] + c[0, -1]  # noqa: E731
    found = diffusion(erring, "epsilon", 0.0, -30.0, dropout, count=4000)
    assert set(np.rint(found)) == ({0.0, 4.0} if dropout else {4.0})
    share = np.mean(found < 1)
    assert abs(share - dropout) <= 4 * (dropout * (1 - dropout) / 4000) ** 0.5


def test_networks_get_their_own_parameters():
    loss = latent_losses.diffusion_loss(
        lambda p, x_t, t, context: p["w"] * context[0, 0] + 0 * x_t,
        lambda p, ids: p["w"] + 0.0 * ids[None],
        ALPHAS, "epsilon", EMPTY, 0.0,
    )  # fmt: skip
    params = {"unet": {"w": jnp.float32(30.0)}, "text_encoder": {"w": jnp.float32(4.0)}}
    example = {"posterior": jnp.zeros((4, 4, 4)), "ids": jnp.asarray(FULL)}
    value, metrics = loss(params, example, jax.random.key(0))
    assert float(value) == pytest.approx(120**2, rel=0.02)  # and the noise
    assert set(metrics) == {"loss"}


def test_latent_objectives_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="kl_weight is -1; use 0"):
        latent_losses.autoencoder_kl_loss(None, None, -1)
    with pytest.raises(ValueError, match=r"edge_weight is -0\.5; use 0 \(leaves the term out\)"):
        latent_losses.autoencoder_kl_loss(None, None, 0.1, -0.5)
    with pytest.raises(ValueError, match="prediction type 'sample'; use epsilon or v_prediction"):
        latent_losses.diffusion_loss(None, None, ALPHAS, "sample", EMPTY, 0.1)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"caption dropout is {dropout}; use 0 to below 1"):
            latent_losses.diffusion_loss(None, None, ALPHAS, "epsilon", EMPTY, dropout)
