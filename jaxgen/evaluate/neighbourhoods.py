# SPDX-License-Identifier: MIT
"""Figures from nearest neighbours: precision, recall, density, coverage; the two-sample test.

Features are [N, D] arrays of one width. Distances are Euclidean.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxgen.evaluate import distances

ROWS = 500  # of a matrix of distances at once


class Manifolds(NamedTuple):
    """How much two samples cover each other: the first two in [0, 1], density from 0 on."""

    precision: float  # share of generated images within the real ones' neighbourhoods
    recall: float  # share of real images within the generated ones' neighbourhoods
    density: float  # neighbourhoods around a generated image, over k; 1 for one distribution
    coverage: float  # share of real images with a generated one in their neighbourhood


def manifolds(real: np.ndarray, generated: np.ndarray, k: int = 5) -> Manifolds:
    """Computes precision, recall, density and coverage of generated images.

    The first two are of Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1, the others of Naeem et
    al. 2020 (arXiv:2002.09797), eq. 3 and 4.

    The neighbourhood of an image is the ball that reaches to its k-th nearest of its own sample,
    which lies in it: the <= of the former's equation, without which copies have no neighbourhood.
    Raises ValueError for features of different width and for k or fewer images in a sample.
    """
    real, generated = distances.checked(real, generated)
    smallest = min(len(real), len(generated))
    if not 1 <= k < smallest:
        raise ValueError(f"{k} neighbours in a sample of {smallest}; give more images or another k")
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    inside, counts, recalled, covered = [], [], [], np.zeros(len(real), bool)
    for gaps in _rows(generated, real):  # [rows of generated, real]
        within = gaps <= real_radii
        inside.append(within.any(axis=1))
        counts.append(within.sum(axis=1))
        covered |= within.any(axis=0)
    for gaps in _rows(real, generated):
        recalled.append((gaps <= generated_radii).any(axis=1))
    return Manifolds(
        float(np.mean(np.concatenate(inside))),
        float(np.mean(np.concatenate(recalled))),
        float(np.mean(np.concatenate(counts)) / k),
        float(np.mean(covered)),
    )


class TwoSample(NamedTuple):
    """Shares of images whose nearest other image is of their own sample; one half is ideal."""

    accuracy: float  # of both samples
    real: float  # below one half: generated images lie on the real ones, as copies do
    generated: float  # above one half: generated images lie on each other, as collapse does


def nearest_neighbour_test(real: np.ndarray, generated: np.ndarray) -> TwoSample:
    """Measures, leaving one out, how well a nearest neighbour tells real from generated images.

    Lopez-Paz & Oquab 2017 (arXiv:1610.06545); Xu et al. 2018 (arXiv:1806.07755), section 2, for
    what the two shares mean. Of several that are equally near, as copies of one image are, each
    counts in part. Raises ValueError unless both samples are of one size, 2 or more.
    """
    real, generated = distances.checked(real, generated)
    if len(real) != len(generated) or len(real) < 2:
        raise ValueError(
            f"a two-sample test of {len(real)} real and {len(generated)} generated images; give "
            f"equally many, 2 or more"
        )
    both, size = np.concatenate([real, generated]), len(real)
    shares, start = [], 0  # of real images among the nearest ones
    for gaps in _rows(both, both):
        own = np.arange(len(gaps))
        gaps[own, start + own] = np.inf
        is_nearest = gaps == gaps.min(axis=1, keepdims=True)
        shares.append(is_nearest[:, :size].sum(axis=1) / is_nearest.sum(axis=1))
        start += len(gaps)
    real_shares = np.concatenate(shares)
    of_real, of_generated = (
        float(np.mean(real_shares[:size])),
        float(np.mean(1 - real_shares[size:])),
    )
    return TwoSample((of_real + of_generated) / 2, of_real, of_generated)


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Computes the distance of each image to its k-th nearest other image."""
    parts = [np.partition(gaps, k, axis=1)[:, k] for gaps in _rows(x, x)]
    return np.concatenate(parts)


def _rows(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    from scipy.spatial import distance  # a fifth of a second that training need not wait for

    for start in range(0, len(x), ROWS):
        yield distance.cdist(x[start : start + ROWS], y)
