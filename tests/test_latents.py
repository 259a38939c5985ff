# SPDX-License-Identifier: MIT
import numpy as np
import pytest
import scipy.stats

from jaxgen.evaluate import features, latents


def codes(count=4000):
    """Two far clusters of different shapes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 2))
    x[: count // 4] = x[: count // 4] * [0.2, 1.0] + [6.0, 0.0]
    return x


def test_one_gaussian_has_the_mean_and_covariance_of_the_codes():
    draws = latents.draw("gaussian", codes(), 20_000)
    np.testing.assert_allclose(draws.mean(axis=0), codes().mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(codes().T), atol=0.2)


def test_a_mixture_has_the_distribution_of_the_codes_where_one_gaussian_has_not():
    x = codes()[:, 0]
    of = lambda source: latents.draw(source, codes(), 4000)[:, 0]  # noqa: E731
    assert scipy.stats.ks_2samp(of("mixture"), x).pvalue > 0.01
    assert scipy.stats.ks_2samp(of("gaussian"), x).pvalue < 1e-9
    assert scipy.stats.kstest(of("normal"), "norm").pvalue > 0.01


def test_draws_of_a_mixture_come_in_no_order():
    """scikit-learn gives them component by component."""
    x = latents.draw("mixture", codes(), 2000)[:, 0] > 3
    assert abs(np.mean(x[:1000]) - np.mean(x[1000:])) < 0.1


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="unknown source of latents 'flow'; use one of normal, g"):
        latents.draw("flow", codes(), 1)
    with pytest.raises(ValueError, match="10 Gaussians of 2 entries need 30 codes or more, not"):
        latents.draw("mixture", codes()[:29], 1)
    with pytest.raises(ValueError, match="codes that are not finite; look at the images"):
        latents.draw("gaussian", codes() * np.nan, 1)


def test_a_mixture_that_cannot_be_fitted_is_named_beside_the_others():
    images = np.random.default_rng(0).integers(0, 256, (29, 2, 1, 1), dtype=np.uint8)
    decode = lambda z: np.uint8(np.clip(128 + 40 * z, 0, 255))[..., None, None]  # noqa: E731
    two_pixels = features.Features("two pixels", 2, (lambda x: x.reshape(len(x), 2),))
    lines = latents.report(lambda x: codes(len(x)), decode, images, images, two_pixels)
    assert [line.split()[0] for line in lines[1:]] == ["normal", "gaussian", "real", "mixture"]
    assert "need 30 codes or more, not 29; use more images, a smaller --latent-dim" in lines[-1]
