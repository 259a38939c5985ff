# SPDX-License-Identifier: MIT
"""Toy distributions with known modes, and how many of them a sample has."""

from typing import NamedTuple

import numpy as np


class Mixture(NamedTuple):
    """Equally likely Gaussians in the plane: centres [M, 2], one standard deviation."""

    centres: np.ndarray
    std: float


def ring(num_modes: int = 8, radius: float = 1.0, std: float = 0.01) -> Mixture:
    """Gaussians on a circle; 8 with 0.01 are those of Srivastava et al. 2017 (arXiv:1705.07761)."""
    angles = 2 * np.pi * np.arange(num_modes) / num_modes
    return Mixture(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), std)


def grid(side: int = 5, spacing: float = 2.0, std: float = 0.05) -> Mixture:
    """Gaussians on a square grid around 0; 25 with 0.05 are those of Srivastava et al. 2017."""
    line = spacing * (np.arange(side) - (side - 1) / 2)
    return Mixture(np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2), std)


def draw(mixture: Mixture, count: int, seed: int) -> np.ndarray:
    """Draws [count, 2] of the mixture."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, len(mixture.centres), count)
    return mixture.centres[places] + mixture.std * rng.standard_normal((count, 2))


class ModeCount(NamedTuple):
    """What a sample has of the modes."""

    modes: int  # that have one high-quality sample or more
    of: int
    high_quality: float  # share of samples within three standard deviations of a mode
    reverse_kl: float  # nats from the modes' shares of these samples to equal shares


def count(mixture: Mixture, samples: np.ndarray) -> ModeCount:
    """Counts the modes that samples [N, 2] have, Srivastava et al. 2017, section 4.1.

    Raises ValueError unless the samples are finite points of the plane, one or more.
    """
    samples = np.asarray(samples, np.float64)
    is_plane = samples.ndim == 2 and samples.shape[1] == 2 and len(samples)
    if not is_plane or not np.isfinite(samples).all():
        raise ValueError(f"samples {samples.shape}; give finite points [N, 2], one or more")
    distances = np.linalg.norm(samples[:, None] - mixture.centres[None], axis=-1)
    good = distances.min(axis=1) <= 3 * mixture.std
    names = distances.argmin(axis=1)[good]
    return _counted(names, len(mixture.centres), float(np.mean(good)))


def stack(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws [count, H, W, 3]: in each channel a random one of grey images [N, H, W, 1].

    The stacked MNIST of Metz et al. 2017 (arXiv:1611.02163), section 3.3. Raises ValueError for
    images of another number of channels.
    """
    if images.ndim != 4 or images.shape[-1] != 1:
        raise ValueError(f"images {images.shape}; stack grey ones, [N, H, W, 1]")
    rows = np.random.default_rng(seed).integers(0, len(images), (count, 3))
    return np.moveaxis(images[rows, ..., 0], 1, -1)


def count_stacked(digits: np.ndarray, num_classes: int = 10) -> ModeCount:
    """Counts the modes of stacked images by digits [N, 3], the class that a judge gives a channel.

    Three images in three channels (`stack`) make num_classes^3 modes. Every sample counts as of
    high quality. Raises ValueError for arrays of another shape and for other classes.
    """
    digits = np.asarray(digits)
    is_class = (digits >= 0) & (digits < num_classes)  # nan is none
    if digits.ndim != 2 or digits.shape[1] != 3 or not len(digits) or not is_class.all():
        raise ValueError(
            f"classes {digits.shape}; give [N, 3] of 0 to {num_classes - 1}, one row or more"
        )
    return _counted(digits @ num_classes ** np.arange(3), num_classes**3, 1.0)


def _counted(names: np.ndarray, num_modes: int, high_quality: float) -> ModeCount:
    counts = np.bincount(names, minlength=num_modes)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    divergence = float(np.sum(shares * np.log(shares * num_modes))) if len(names) else float("inf")
    return ModeCount(int(np.sum(counts > 0)), num_modes, high_quality, divergence)
