# SPDX-License-Identifier: MIT
"""Bounds of a VAE whose likelihood is known in closed form: `support/linear_gaussian.py`."""

import jax
import numpy as np
import pytest
import scipy.stats
from support import compilations
from support.linear_gaussian import LATENT, decode, drawn, encode, exact_nll, model

from jaxgen.evaluate import likelihood
from jaxgen.train import losses, parallel


def log_weight(params, example, key, weight_key):
    weight = losses.log_weight(encode, decode, losses.gaussian)
    return weight(params, example["image"], example["label"], weight_key)


def nll(params, test, num_samples, seed=0, **options):
    return likelihood.importance_nll(
        log_weight, params, test, jax.random.key(seed), num_samples, **options
    )


def estimates_of(params, test, ks, seed=0, **options):
    return likelihood.importance_estimates(
        log_weight, params, test, jax.random.key(seed), ks, **options
    )


def terms(params, test, **options):
    loss = losses.vae_loss(encode, decode, losses.gaussian)
    return likelihood.mean_terms(loss, params, test, jax.random.key(0), **options)


def test_bound_is_the_exact_likelihood_when_the_posterior_is_the_true_one():
    """In expectation over z: within 4 standard errors of 4,000 draws for one image."""
    one = drawn(1)
    many = {name: np.repeat(x, 4000, axis=0) for name, x in one.items()}
    mean, error = terms(model(), many)["neg_elbo_nats"]
    assert abs(mean - exact_nll(one)[0]) < 4 * error
    assert error < 0.05


def test_gap_of_the_bound_is_the_divergence_from_the_true_posterior():
    """For a variance exp(a) times too large it is (exp(a) - 1 - a) / 2 in each dimension."""
    one = drawn(1)
    many = {name: np.repeat(x, 4000, axis=0) for name, x in one.items()}
    mean, error = terms(model(worse=1.0), many)["neg_elbo_nats"]
    gap = LATENT * (np.e - 2) / 2
    assert abs(mean - exact_nll(one)[0] - gap) < 4 * error
    assert gap > 8 * error


@pytest.mark.parametrize("num_samples", [1, 2, 10])
def test_importance_sampling_is_exact_with_the_true_posterior(num_samples):
    """All weights are then p(x) itself, whatever z was drawn."""
    test = drawn()
    expected = exact_nll(test)
    mean, error = nll(model(), test, num_samples)
    np.testing.assert_allclose(mean, expected.mean(), atol=1e-4)
    np.testing.assert_allclose(error, scipy.stats.sem(expected), rtol=1e-4)


def test_importance_sampling_falls_from_the_bound_to_the_likelihood_as_samples_grow():
    """Burda et al. 2016, theorem 1; k = 1 is the bound, with its known gap of e^2 - 3 nats."""
    test = drawn(400)
    exact = exact_nll(test).mean()
    gaps = [nll(model(worse=2.0), test, k, seed=k)[0] - exact for k in (1, 3, 10, 1000)]
    assert gaps[0] == pytest.approx(np.e**2 - 3, abs=1.3)
    assert gaps[0] > gaps[1] > gaps[2] > 0.05
    assert abs(gaps[3]) < 0.03


def test_estimates_agree_with_the_exact_likelihood_within_what_they_state():
    """With e times the variance of the posterior, the gap of k = 1 is known, e - 2 nats, and those
    of larger k to first order; the noise is of the samples alone, the images being the same."""
    test = drawn(20)
    ks = [1, 10, 100, 1000, 5000]
    estimates = estimates_of(model(worse=1.0), test, ks)
    exact = exact_nll(test).mean()
    first = LATENT * (np.e - 2) / 2
    for k in ks:
        nats, _, noise, gap = estimates[k]
        expected = {1: first, 10: gap * 0.9}.get(k, gap)  # of the second order at k = 10
        assert abs(nats - exact - expected) < 4.5 * noise + 0.1 * gap * (1 < k <= 10), k
        assert noise < 0.01
    assert estimates[5000].gap == pytest.approx(
        ((np.e / (2 * np.e - 1) ** 0.5) ** 2 - 1) / 1e4, rel=0.1
    )
    heights = [estimates[k].nats for k in ks]
    assert heights == sorted(heights, reverse=True)


def test_few_samples_say_that_they_say_little():
    """Of one weight nothing is known, and of few less than is true: k weights show a gap of at most
    (k - 1) / 2k nats or, with the unbiased variance, 1/2. Here the gap of k = 1 is 15 nats."""
    test, params = drawn(40), model(worse=3.0)
    one = estimates_of(params, test, [1])[1]
    assert np.isnan(one.gap)
    assert np.isnan(one.noise)
    assert "(k = 1; one sample does not say how much it adds)" in one.line(1)
    few = estimates_of(params, test, [5])[5]
    true_gap = few.nats - exact_nll(test).mean()
    assert 0.1 < few.gap <= 0.5 < true_gap
    errors = f"+- {few.noise:.3f} and {few.gap:.3f} too much, or more)"
    assert f"(k = 5; too few: they make {errors}" in few.line(5)
    many = estimates_of(model(), test, [50])[50]
    assert "(k = 50; its samples make +- 0.000, and about 0.000 too much)" in many.line(50)


def test_the_stated_noise_is_that_of_other_draws():
    test = drawn(6)
    many = [estimates_of(model(worse=1.0), test, [1, 10, 100], seed=i) for i in range(40)]
    for k in (1, 10, 100):
        spread = np.std([estimates[k].nats for estimates in many], ddof=1)
        stated = np.mean([estimates[k].noise for estimates in many])
        assert spread == pytest.approx(stated, rel=0.5)


def test_a_test_set_on_a_mesh_has_the_same_figures():
    test, params, mesh = drawn(10), model(worse=1.0), parallel.data_mesh(4)
    alone = estimates_of(params, test, [2, 10])
    spread = estimates_of(params, test, [2, 10], batch_size=3, mesh=mesh)
    for k in (2, 10):
        np.testing.assert_allclose(spread[k], alone[k], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        terms(params, test, batch_size=4, mesh=mesh)["loss"], terms(params, test)["loss"], rtol=1e-5
    )


def test_samples_taken_in_chunks_are_all_counted_once():
    """With posteriors of the model, no chunk may be lost or counted double: log k would shift."""
    test = drawn(5)
    for chunk in (1, 3, 12):
        got = nll(model(), test, 12, chunk=chunk)[0]
        np.testing.assert_allclose(got, exact_nll(test).mean(), atol=1e-4)


def test_figures_do_not_depend_on_the_size_of_the_batches():
    test, params = drawn(10), model(worse=1.0)
    whole, cut = nll(params, test, 4, batch_size=10), nll(params, test, 4, batch_size=3)
    np.testing.assert_allclose(whole, cut, rtol=1e-6)
    whole, cut = terms(params, test, batch_size=10), terms(params, test, batch_size=4)
    assert set(whole) == {"loss", "recon_nats", "kl_nats", "neg_elbo_nats", "beta"}
    for name in whole:
        np.testing.assert_allclose(whole[name], cut[name], rtol=1e-5, atol=1e-6)


def test_analytic_term_is_the_mean_over_images_with_its_standard_error():
    test, params = drawn(10), model()
    codes = [np.asarray(encode(params["encoder"], x, None), np.float64) for x in test["images"]]
    mean, logvar = np.split(np.array(codes), 2, axis=1)
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(axis=1)
    got = terms(params, test, batch_size=4)["kl_nats"]
    np.testing.assert_allclose(got, (kl.mean(), scipy.stats.sem(kl)), rtol=1e-5)


def test_all_samples_of_an_image_see_the_same_draw_of_the_image():
    """A weight that binarizes the image: if the samples disagreed, the mean weight would blur.

    With log w = 50 * pixel for a pixel of -1 or 1 the result is -50 or 50 for each image.
    """

    def weight(params, example, key, weight_key):
        jitter = 0.0 * jax.random.normal(weight_key)
        return 50 * losses.binarize(key, example["image"])[0, 0, 0] + jitter

    values = []
    for i in range(8):
        test = {"images": np.zeros((1, 1, 1, 1), np.float32), "labels": np.zeros(1, np.int32)}
        key = jax.random.key(i)
        values.append(likelihood.importance_nll(weight, (), test, key, 8, chunk=4)[0])
    np.testing.assert_allclose(sorted(set(np.round(values, 3))), [-50, 50])


def test_noise_of_pixels_that_are_drawn_is_that_of_their_number():
    """log w = 2 for a white pixel: 30 of probability p have a variance of 4 * 30 p (1 - p)."""
    shares = np.random.default_rng(0).integers(0, 256, (800, 1))
    images = np.broadcast_to(shares, (800, 30)).astype(np.uint8)

    def count(params, example, key, weight_key):
        return 2.0 * jax.random.bernoulli(key, example["image"] / 255).sum()

    test = {"images": images, "labels": np.zeros(800, np.int32)}
    noise = likelihood.redraw_noise(count, {}, test, jax.random.key(0), 4)
    p = shares / 255
    exact = np.sqrt((4 * 30 * p * (1 - p)).mean() / 800)
    assert noise == pytest.approx(exact, rel=0.15)  # 800 squares of differences: 5 % each


def test_another_model_and_key_compile_nothing():
    """The functions of one evaluation serve all of its models."""
    test, keys = drawn(), jax.random.split(jax.random.key(0), 2)
    loss = losses.vae_loss(encode, decode, losses.gaussian)
    for params, key, expected in ((model(), keys[0], True), (model(1.0), keys[1], False)):
        with compilations.counted() as seconds:
            likelihood.mean_terms(loss, params, test, key)
            likelihood.importance_nll(log_weight, params, test, key, 7)
        assert bool(seconds) == expected


def test_number_of_samples_must_fill_its_chunks():
    with pytest.raises(ValueError, match="70 samples are not a multiple of 50"):
        nll(model(), drawn(2), 70)


def test_one_image_has_no_standard_error():
    mean, error = nll(model(), drawn(1), 2)
    assert np.isfinite(mean)
    assert np.isnan(error)


def test_grey_pixels_have_no_likelihood_of_binary_ones():
    likelihood.check_binary(np.uint8([[0, 255], [255, 0]]))
    with pytest.raises(ValueError, match="25.0% of the pixels are neither black nor white; train"):
        likelihood.check_binary(np.uint8([[0, 254], [255, 0]]))
