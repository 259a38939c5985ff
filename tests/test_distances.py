# SPDX-License-Identifier: MIT
"""Distances between samples: closed forms of Gaussians, scipy and scikit-learn for the pieces."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from jaxgen.evaluate import distances, features, modes, neighbourhoods, quality


def gaussian(seed, count, mean=0.0, scale=1.0, width=3):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((width, width))
    return mean + scale * rng.standard_normal((count, width)) @ mixing


def whitened(count, mean, variances, seed=0):
    """A sample whose mean and covariance are exactly these."""
    x = np.random.default_rng(seed).standard_normal((count, len(variances)))
    x = x - x.mean(axis=0)
    root = np.linalg.cholesky(np.linalg.inv(np.cov(x, rowvar=False)))
    return x @ root * np.sqrt(variances) + mean


# --- Frechet --------------------------------------------------------------------------------


def test_frechet_of_axis_aligned_gaussians_is_the_closed_form():
    """|m - n|^2 + sum (s - t)^2 for standard deviations s and t."""
    a = whitened(50, np.array([1.0, 0, 2]), np.array([1.0, 4, 9]))
    b = whitened(70, np.array([0.0, 0, 0]), np.array([4.0, 4, 1]), seed=1)
    assert distances.frechet(a, b) == pytest.approx(5 + 1 + 0 + 4, rel=1e-9)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_equals_the_matrix_square_root_of_scipy():
    a, b = gaussian(0, 40), gaussian(1, 50, 0.5, 1.7)
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root
    )
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert distances.frechet(b, a) == pytest.approx(expected, rel=1e-8)


def test_a_covariance_without_full_rank_is_no_obstacle():
    a, b = gaussian(0, 40), gaussian(1, 40)
    a, b = (np.concatenate([x, x[:, :1]], axis=1) for x in (a, b))  # one feature twice
    assert np.isfinite(distances.frechet(a, b))


def test_the_line_in_one_over_n_takes_the_bias_away():
    """Samples of one distribution: the distance is too large by about 1/N, and its line is not."""
    pairs = [(gaussian(i, 300, width=6), gaussian(i + 100, 20_000, width=6)) for i in range(5)]
    plain = np.mean([distances.frechet(*pair) for pair in pairs])
    line = np.mean([distances.frechet_of_infinitely_many(*pair) for pair in pairs])
    assert plain > 0.1
    assert abs(line) < plain / 3


# --- kernel distance ------------------------------------------------------------------------


def test_kernel_distance_is_the_unbiased_estimate_with_scikit_learns_kernel():
    a, b = gaussian(0, 30), gaussian(1, 40, 0.3)
    kernel = lambda x, y: polynomial_kernel(x, y, degree=3, coef0=1)  # noqa: E731
    off = lambda x: kernel(x, x)[~np.eye(len(x), dtype=bool)].mean()  # noqa: E731
    expected = off(a) + off(b) - 2 * kernel(a, b).mean()
    assert distances.kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_zero_on_average_for_one_distribution():
    values = [distances.kernel_distance(gaussian(i, 20), gaussian(i + 500, 20)) for i in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5
    assert min(values) < 0 < max(values)


# --- neighbourhoods -------------------------------------------------------------------------


def test_manifolds_are_those_of_scikit_learns_neighbours():
    real, fake, k = gaussian(0, 60), gaussian(1, 50, 0.4, 1.2), 3
    radius = lambda x: NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[0][:, -1]  # noqa: E731
    gaps = np.linalg.norm(real[:, None] - fake[None], axis=-1)
    in_real, in_fake = gaps <= radius(real)[:, None], gaps <= radius(fake)[None]
    got = neighbourhoods.manifolds(real, fake, k)
    assert got.precision == in_real.any(axis=0).mean()
    assert got.recall == in_fake.any(axis=1).mean()
    assert got.density == pytest.approx(in_real.sum(axis=0).mean() / k)
    assert got.coverage == in_real.any(axis=1).mean()


def test_the_edge_of_a_neighbourhood_belongs_to_it():
    """Kynkaanniemi et al. 2019, eq. 1, has <=: copies of an image lie in its ball of radius 0."""
    copies = np.repeat(gaussian(0, 10), 8, axis=0)
    assert neighbourhoods.manifolds(copies, copies, 5) == (1, 1, 8 / 5, 1)
    line, beside = np.array([[0.0], [1.0], [5.0]]), np.array([[2.0], [9.0], [9.5]])
    assert neighbourhoods.manifolds(line, beside, 1) == pytest.approx((2 / 3, 1, 1, 2 / 3))


def test_one_distribution_has_the_known_density_and_coverage():
    """Density 1, coverage 1 - 2^-k as the samples grow (Naeem et al. 2020, lemma 2)."""
    values = [
        neighbourhoods.manifolds(gaussian(i, 400), gaussian(i + 50, 400), 5) for i in range(8)
    ]
    assert np.mean([v.density for v in values]) == pytest.approx(1, abs=0.05)
    assert np.mean([v.coverage for v in values]) == pytest.approx(1 - 2**-5, abs=0.015)


def test_collapse_and_noise_are_told_apart():
    real = gaussian(0, 300)
    copies = real[:3].repeat(100, axis=0) + 1e-6 * gaussian(1, 300)
    collapsed = neighbourhoods.manifolds(real, copies)
    spread = neighbourhoods.manifolds(real, gaussian(1, 300, scale=8.0))
    assert collapsed.precision == 1
    assert collapsed.coverage < 0.1
    assert spread.precision < 0.3
    assert spread.recall > 0.9


def test_the_two_sample_test_is_the_leave_one_out_classifier():
    real, fake = gaussian(0, 40), gaussian(1, 40, 1.0)
    both, names = np.concatenate([real, fake]), np.repeat([0, 1], 40)
    right = []
    for i in range(80):
        others = np.arange(80) != i
        one = KNeighborsClassifier(1).fit(both[others], names[others])
        right.append(one.predict(both[i : i + 1])[0] == names[i])
    got = neighbourhoods.nearest_neighbour_test(real, fake)
    assert got == pytest.approx((np.mean(right), np.mean(right[:40]), np.mean(right[40:])))


def test_copies_have_no_neighbour_of_their_own_and_strangers_only_those():
    real = gaussian(0, 30)
    assert neighbourhoods.nearest_neighbour_test(real, real + 1e-9) == (0, 0, 0)
    assert neighbourhoods.nearest_neighbour_test(real, real + 100) == (1, 1, 1)


# --- modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixture", "num_modes"), [(modes.ring(), 8), (modes.grid(), 25)])
def test_draws_of_a_mixture_have_all_its_modes(mixture, num_modes):
    """Within three deviations in the plane: 1 - exp(-4.5) of a Gaussian."""
    got = modes.count(mixture, modes.draw(mixture, 20_000, 0))
    assert (got.modes, got.of) == (num_modes, num_modes)
    assert got.high_quality == pytest.approx(1 - np.exp(-4.5), abs=0.004)
    assert got.reverse_kl < 0.002
    collapsed = modes.count(mixture, np.repeat(mixture.centres[2:4], 50, axis=0))
    assert (collapsed.modes, collapsed.high_quality) == (2, 1)
    assert collapsed.reverse_kl == pytest.approx(np.log(num_modes / 2))
    assert modes.count(mixture, np.full((9, 2), 50.0))[:3] == (0, num_modes, 0)


def test_stacked_images_have_a_mode_for_each_triple_of_classes():
    triples = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)
    assert modes.count_stacked(triples, 4)[:2] == (64, 64)
    some = modes.count_stacked(triples[[0, 5, 5, 9]], 4)
    assert some.modes == 3
    assert some.reverse_kl == pytest.approx(np.log(64) - 1.5 * np.log(2))


TWO = features.RANDOM._replace(networks=features.RANDOM.networks[:2])


def test_copies_of_one_image_share_its_place_as_nearest():
    """Real points in far pairs, generated ones all on the first of them: counted by hand."""
    real = np.array([0.0, 1, 100, 101, 200, 201, 300, 301, 400, 401])[:, None]
    got = neighbourhoods.nearest_neighbour_test(real, np.zeros((10, 1)))
    expected = (0 + 1 / 11 + 8) / 10, 0.9  # a copy's nearest are nine copies and a real point
    assert got == pytest.approx((np.mean(expected), *expected))
    same = np.ones((10, 1))
    assert neighbourhoods.nearest_neighbour_test(same, same) == pytest.approx((9 / 19,) * 3)


# --- images ---------------------------------------------------------------------------------


def test_a_comparison_puts_generated_images_beside_the_floor_of_real_ones():
    rng = np.random.default_rng(0)
    draw = lambda low, high, n: rng.integers(low, high, (n, 8, 8, 1), dtype=np.uint8)  # noqa: E731
    dark, train, test = draw(0, 60, 150), draw(0, 256, 200), draw(0, 256, 140)
    got = quality.compare(dark, train, test, TWO)
    assert got.num_images == 140
    assert all(x.shape == (2,) for x in (*got.generated, *got.floor))
    assert np.all(got.generated.frechet > 5 * got.floor.frechet)
    assert np.all(got.generated.nearest_neighbour > 0.9)
    assert np.all(abs(got.floor.nearest_neighbour - 0.5) < 0.15)
    text = "\n".join(quality.lines(got))
    assert "140 test images" in text
    assert f"{got.floor.kernel.mean():9.4f}" in text

    each = quality.compare_each({"others": train[:150], "dark": dark}, train, test, TWO)
    np.testing.assert_array_equal(each["dark"].generated, got.generated)
    np.testing.assert_array_equal(each["others"].floor, got.floor)
    assert np.all(each["others"].generated.frechet < 2 * got.floor.frechet)


def test_real_images_that_lie_sorted_are_compared_as_shuffled_ones():
    rng = np.random.default_rng(0)
    classes = [rng.integers(low, low + 60, (300, 8, 8, 1), dtype=np.uint8) for low in (0, 190)]
    images = np.concatenate(classes)
    test, train = images[::2], images[1::2]  # the first class, then the second
    for sets in ((train[::2], train, test), (test[::2], test, train)):
        floor = quality.compare(rng.permutation(sets[0]), *sets[1:], TWO).floor
        assert np.all(floor.nearest_neighbour < 0.65)
        assert np.all(floor.coverage > 0.7)


def test_samples_that_cannot_be_compared_are_refused():
    a = gaussian(0, 10)
    with pytest.raises(ValueError, match=r"features \(10, 3\) and \(10, 2\); give two arrays"):
        distances.frechet(a, a[:, :2])
    with pytest.raises(ValueError, match="covariance of 3 features needs more than 3 samples"):
        distances.frechet(a, a[:3])
    with pytest.raises(ValueError, match="features that are not finite"):
        distances.kernel_distance(a, a * np.nan)
    with pytest.raises(ValueError, match=r"not finite, or beyond 3.4e\+38; look at the images"):
        distances.kernel_distance(a * 1e120, a)
    assert np.isfinite(distances.kernel_distance(a * 1e37, a))
    with pytest.raises(ValueError, match="features that are not finite"):
        neighbourhoods.manifolds(a, np.concatenate([a[:9], a[9:] * np.nan]))
    with pytest.raises(ValueError, match="features that are not finite"):
        neighbourhoods.nearest_neighbour_test(a * np.nan, a)
    with pytest.raises(ValueError, match="a kernel distance of 10 and 1 samples; give 2"):
        distances.kernel_distance(a, a[:1])
    with pytest.raises(ValueError, match="give at least 8 generated images, not 6"):
        distances.frechet_of_infinitely_many(a[:6], a)
    with pytest.raises(ValueError, match="5 neighbours in a sample of 5; give more images"):
        neighbourhoods.manifolds(a, a[:5])
    with pytest.raises(ValueError, match="of 10 real and 9 generated images; give equally many"):
        neighbourhoods.nearest_neighbour_test(a, a[:9])
    with pytest.raises(ValueError, match=r"samples \(10, 3\); give finite points \[N, 2\]"):
        modes.count(modes.ring(), a)
    with pytest.raises(ValueError, match=r"classes \(1, 3\); give \[N, 3\] of 0 to 9"):
        modes.count_stacked(np.array([[0, 1, 10]]))
    with pytest.raises(ValueError, match=r"classes \(1, 3\); give \[N, 3\] of 0 to 9"):
        modes.count_stacked(np.array([[0, 1, np.nan]]))
    grey, colour = np.zeros((9, 4, 4, 1), np.uint8), np.zeros((9, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="images of different shapes"):
        quality.compare(grey, grey, colour)
    with pytest.raises(ValueError, match="distances of 9 images by 64 features; give 130 or m"):
        quality.compare(grey, grey, grey)
    with pytest.raises(ValueError, match=r"float32 \(9, 4, 4, 1\); compare uint8 images \[N, H"):
        quality.compare(grey, np.float32(grey), grey)
    with pytest.raises(ValueError, match="complex features; give real numbers"):
        distances.frechet(a, a * 1j)
    with pytest.raises(ValueError, match=r"features \(10, 0\) and \(10, 0\); give two arrays"):
        distances.kernel_distance(a[:, :0], a[:, :0])
    with pytest.raises(ValueError, match=r"samples \(0, 2\); give finite points"):
        modes.count(modes.ring(), np.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"classes \(0, 3\); give .* one row or more"):
        modes.count_stacked(np.zeros((0, 3)))
