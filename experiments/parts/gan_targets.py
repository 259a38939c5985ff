# SPDX-License-Identifier: MIT
"""What the generators of `gan_study.py` are to draw, and how their draws are counted."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data import sets
from jaxgen.evaluate import classes, judge, modes
from jaxgen.pictures import images
from jaxgen.runs import plan

POINTS = {"ring": modes.ring, "grid": modes.grid}
SURE = 0.9  # of its class a judge is, where an image counts as of high quality


class Target(NamedTuple):
    """A distribution: examples of it, and what a sample has of its modes."""

    data: np.ndarray  # float32 [N, D], most of it in [-1, 1]
    held_out: np.ndarray  # float32 [M, D], which no run has seen
    count: Callable[[np.ndarray], dict[str, Any]]  # draws [M, D] -> their counts
    latent_dim: int
    is_bounded: bool  # says whether nothing lies outside [-1, 1]


def by_name(name: str, num_draws: int, seed: int) -> Target:
    """Makes the target of that name: "ring", "grid", or a data set of labelled images.

    Raises ValueError for a data set that is not there or has no labels.
    """
    try:
        return (points if name in POINTS else pictures)(name, num_draws, seed)
    except ValueError as error:
        raise ValueError(f"--target {name} is not {' or '.join(POINTS)}: {error}") from error


def points(name: str, num_draws: int, seed: int) -> Target:
    """Draws from Gaussians in the plane, scaled so that their centres lie in [-1, 1]."""
    mixture = POINTS[name]()
    scale = float(np.abs(mixture.centres).max())

    def draw(count: int, seed: int) -> np.ndarray:
        return (modes.draw(mixture, count, seed) / scale).astype(np.float32)

    count = partial(count_of_points, mixture, scale)
    return Target(draw(50_000, seed), draw(num_draws, seed + plan.MOST_SEED + 1), count, 8, False)


def pictures(name: str, num_draws: int, seed: int) -> Target:
    """Reads the images of a labelled data set, each a vector; a classifier of them counts.

    Of more than num_draws test images so many, chosen at random, are held out.
    """
    train, test = sets.load(name, "train"), sets.load(name, "test")
    rows = np.random.default_rng(seed).permutation(len(test.images))[:num_draws]
    classifier = judge.train(train, test)
    data, held_out = (
        pixels.reshape(len(pixels), -1).astype(np.float32) / 127.5 - 1
        for pixels in (train.images, test.images[rows])
    )
    count = partial(
        count_of_images, classifier.classify, train.images.shape[1:], len(train.class_names)
    )
    return Target(data, held_out, count, 32, True)


def count_of_points(mixture: modes.Mixture, scale: float, samples: np.ndarray) -> dict[str, Any]:
    """Counts the modes of points [M, 2], and the share within three standard deviations of one."""
    if not np.isfinite(samples).all():
        return diverged(len(mixture.centres))
    counts = modes.count(mixture, scale * np.asarray(samples, np.float64))
    return row(counts.modes, counts.of, counts.high_quality)


def count_of_images(
    classify: judge.Classify, shape: tuple[int, ...], num_classes: int, samples: np.ndarray
) -> dict[str, Any]:
    """Counts the classes of images [M, H W C], and the share of which the judge is 0.9 sure.

    A class with less than a tenth of an equal share is a missing one.
    """
    if not np.isfinite(samples).all():
        return diverged(num_classes)
    probabilities = classify(images.to_uint8(samples.reshape(-1, *shape)))
    num_missing = len(classes.report(probabilities).missing)
    sure = float(np.mean(probabilities.max(axis=1) >= SURE))
    return row(num_classes - num_missing, num_classes, sure)


def row(modes: int, of: int, high_quality: float) -> dict[str, Any]:
    """Returns the counts of one run."""
    return {"modes": modes, "of": of, "high_quality": high_quality, "diverged": False}


def diverged(of: int) -> dict[str, Any]:
    """Returns the counts of a run that left the finite numbers: it has found no modes."""
    return row(0, of, 0.0) | {"diverged": True}
