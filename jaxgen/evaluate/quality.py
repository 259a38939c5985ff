# SPDX-License-Identifier: MIT
"""How near generated images are to real ones, beside how near real ones are: figures with a floor.

By the features of several networks a figure is their mean and standard deviation; `features` says
which networks there are.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxgen.evaluate import distances, neighbourhoods
from jaxgen.evaluate.features import RANDOM, Features

MOST_IMAGES = 10_000


class Figures(NamedTuple):
    """Figures of one comparison; arrays [S], one entry for each network."""

    frechet: np.ndarray
    frechet_infinite: np.ndarray  # for infinitely many images of the first sample
    kernel: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray
    nearest_neighbour: np.ndarray  # accuracy of the two-sample test; 0.5 is ideal


class Comparison(NamedTuple):
    """Generated and real training images, each against the same number of real test images."""

    generated: Figures
    floor: Figures
    num_images: int
    features: Features


def compare(
    generated: np.ndarray, train: np.ndarray, test: np.ndarray, features: Features = RANDOM
) -> Comparison:
    """Computes the figures of uint8 images [N, H, W, C]; of each set as many as the smallest has.

    Real images are taken at random, by a fixed seed: files often lie sorted by class. Raises
    ValueError for images of other shapes or of another dtype, and for too few.
    """
    return compare_each({"generated": generated}, train, test, features)["generated"]


def compare_each(
    samples: Mapping[str, np.ndarray],
    train: np.ndarray,
    test: np.ndarray,
    features: Features = RANDOM,
) -> dict[str, Comparison]:
    """Compares several samples, by name; the features of real images are computed once."""
    sets = [*samples.values(), train, test]
    shapes = {images.shape[1:] for images in sets}
    for images in sets:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"{images.dtype} {images.shape}; compare uint8 images [N, H, W, C]")
    if len(shapes) > 1:
        raise ValueError(f"images of different shapes {sorted(shapes)}; compare those of one shape")
    count = min(*map(len, sets), MOST_IMAGES)
    if count < features.least_images:
        raise ValueError(
            f"distances of {count} images by {features.width} features; give "
            f"{features.least_images} or more of each kind: generated, training and test"
        )
    train, test = (some(images, count, seed) for seed, images in enumerate((train, test)))
    by_network: list[list[list[float]]] = []  # of each network the floor, then each sample
    for extract in features.networks:
        real = extract(test)
        others = (extract(x[:count]) for x in (train, *samples.values()))
        by_network.append([_figures(x, real) for x in others])
    floor, *of_samples = (
        Figures(*map(np.array, zip(*part, strict=True))) for part in zip(*by_network, strict=True)
    )
    return {
        name: Comparison(figures, floor, count, features)
        for name, figures in zip(samples, of_samples, strict=True)
    }


def some(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Takes so many of the images at random; all of them as they are."""
    if count == len(images):
        return images
    return images[np.random.default_rng(seed).permutation(len(images))[:count]]


def lines(comparison: Comparison) -> list[str]:
    """Writes the comparison as a table of text: each figure with its floor."""
    count, features = comparison.num_images, comparison.features
    rows = [f"  {f'against {count} test images':26s} generated   real   (by {features.name})"]
    for name in Figures._fields:
        figure, floor = getattr(comparison.generated, name), getattr(comparison.floor, name)
        title = name.replace("frechet", features.frechet).replace("_", " ")
        rows.append(f"  {title:18s}" + "   ".join(map(spread, (figure, floor))))
    return rows


def spread(values: np.ndarray, digits: int = 4) -> str:
    """Writes the mean of a figure and, of several networks, its standard deviation over them."""
    deviation = f" +- {np.std(values):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():9.{digits}f}{deviation}"


def report(
    generated: np.ndarray, train: np.ndarray, test: np.ndarray, features: Features = RANDOM
) -> list[str]:
    """Writes the lines of `compare`, or the one that says how many images it needs."""
    if min(len(generated), len(train), len(test)) < features.least_images:
        return [f"  distances        need {features.least_images} images or more of each kind"]
    return lines(compare(generated, train, test, features))


def _figures(sample: np.ndarray, real: np.ndarray) -> list[float]:
    return [
        distances.frechet(sample, real),
        distances.frechet_of_infinitely_many(sample, real),
        distances.kernel_distance(sample, real),
        *neighbourhoods.manifolds(real, sample),
        neighbourhoods.nearest_neighbour_test(real, sample).accuracy,
    ]
