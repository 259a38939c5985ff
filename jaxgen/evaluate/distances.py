# SPDX-License-Identifier: MIT
"""Distances between two samples of features, of generated and of real images, in float64.

Features are [N, D] arrays of one width; N may differ. Beside every figure belongs the same figure
of real training images against real test images: the floor.
"""

from collections.abc import Callable

import numpy as np

LARGEST = float(np.finfo(np.float32).max)  # of a feature: no product of the figures overflows


def checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts features to float64.

    Raises ValueError unless they are real numbers of one width, finite, and no larger than float32
    can be.
    """
    if np.iscomplexobj(a) or np.iscomplexobj(b):
        raise ValueError("complex features; give real numbers, such as their absolute values")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ValueError(f"features {a.shape} and {b.shape}; give two arrays [N, D] of one width D")
    if not all((np.abs(x) <= LARGEST).all() for x in (a, b)):  # also true of nan
        raise ValueError(
            f"features that are not finite, or beyond {LARGEST:.1e}; look at the images or the "
            f"network"
        )
    return a, b


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the Frechet distance between Gaussians with the samples' means and covariances.

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)

    Dowson & Landau 1982 (J. Multivariate Analysis 12), Heusel et al. 2017 (arXiv:1706.08500), eq. 6
    (the FID only with the features of their Inception network). Too large by about 1/N on average.
    Raises ValueError for features of different width and for too few samples for a covariance.
    """
    a, b = checked(a, b)
    return _frechet_to(b)(a)


def _frechet_to(b: np.ndarray) -> Callable[[np.ndarray], float]:
    """Builds the Frechet distance to `b` of any sample; the moments of `b` are computed once."""
    mean_b, covariance_b = _moments(b)
    # symmetric throughout: the square root of a product of two covariances may turn complex
    values, vectors = np.linalg.eigh(covariance_b)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T

    def distance(a: np.ndarray) -> float:
        mean_a, covariance_a = _moments(a)
        product = np.linalg.eigvalsh(root @ covariance_a @ root)
        cross = np.sum(np.sqrt(np.maximum(product, 0)))
        means = np.sum((mean_a - mean_b) ** 2)
        return float(means + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)

    return distance


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean [D] and covariance [D, D] of a sample; raises ValueError for too few rows."""
    if len(x) <= x.shape[1]:
        raise ValueError(
            f"a covariance of {x.shape[1]} features needs more than {len(x)} samples; give at "
            f"least {x.shape[1] + 1}"
        )
    return x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))


def frechet_of_infinitely_many(
    generated: np.ndarray, real: np.ndarray, seed: int = 0, num_points: int = 15
) -> float:
    """Predicts the Frechet distance of N -> infinity generated images, by a line in 1/N.

    Chong & Forsyth 2020 (arXiv:1911.07023), section 4: distances of random subsets of N / 10 (but
    always more than the features) to N images, and least squares. Real images stay as they are.
    """
    generated, real = checked(generated, real)
    least = max(len(generated) // 10, generated.shape[1] + 1)
    if len(generated) < 2 * least:
        raise ValueError(
            f"a line needs sizes from {least} on; give at least {2 * least} generated images, not "
            f"{len(generated)}"
        )
    rng = np.random.default_rng(seed)
    sizes = np.linspace(least, len(generated), num_points).astype(int)
    distance = _frechet_to(real)
    distances = [distance(rng.permutation(generated)[:size]) for size in sizes]
    return float(np.polynomial.polynomial.polyfit(1 / sizes, distances, 1)[0])


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Estimates, without bias, the squared maximum mean discrepancy with a cubic kernel.

        k(x, y) = (x . y / D + 1)^3

    Binkowski et al. 2018 (arXiv:1801.01401), section 4 (the KID only with features of Inception).
    Zero on average for samples of one distribution, for any N, and so negative half of the time.
    Raises ValueError for features of different width and for fewer than 2 samples.
    """
    a, b = checked(a, b)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance of {len(a)} and {len(b)} samples; give 2 or more")
    return float(_within(a) + _within(b) - 2 * _kernel(a, b) / (len(a) * len(b)))


def _within(x: np.ndarray) -> float:
    """Averages the kernel over pairs of different samples."""
    same = np.sum(_cubed(np.sum(x * x, axis=1), x))
    return (_kernel(x, x) - same) / (len(x) * (len(x) - 1))


def _kernel(x: np.ndarray, y: np.ndarray, rows: int = 1000) -> float:
    """Sums the kernel over all pairs, some rows at a time."""
    return sum(np.sum(_cubed(x[i : i + rows] @ y.T, x)) for i in range(0, len(x), rows))


def _cubed(products: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (products / x.shape[1] + 1) ** 3
