# SPDX-License-Identifier: MIT
"""How near generated images are to real ones, beside how near real ones are: figures with a floor.

The features are those of convolutional networks with random weights, which no data and no training
have shaped; Naeem et al. 2020 (arXiv:2002.09797), section 4, recommend them where no network of the
domain is at hand. Each seed is another network: a figure is their mean and standard deviation.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.evaluate import distances, neighbourhoods
from jaxgen.nn import classifier, functional
from jaxgen.train import augment
from jaxgen.types import Array, Key, Params

NUM_FEATURES = 64
NETWORK = classifier.Classifier(NUM_FEATURES)
SEEDS = (0, 1, 2)
MOST_IMAGES = 10_000
LEAST_IMAGES = 2 * (NUM_FEATURES + 1)  # for a line of Frechet distances


class Figures(NamedTuple):
    """Figures of one comparison; arrays [S], one entry for each random network."""

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


def compare(
    generated: np.ndarray, train: np.ndarray, test: np.ndarray, seeds: Sequence[int] = SEEDS
) -> Comparison:
    """The figures of uint8 images [N, H, W, C]; of each set as many as the smallest has.

    Training images are taken at random, by a fixed seed. Raises ValueError for images of other
    shapes and for too few.
    """
    shapes = {images.shape[1:] for images in (generated, train, test)}
    if len(shapes) > 1:
        raise ValueError(f"images of different shapes {sorted(shapes)}; compare those of one shape")
    count = min(len(generated), len(train), len(test), MOST_IMAGES)
    if count < LEAST_IMAGES:
        raise ValueError(
            f"distances of {count} images; give {LEAST_IMAGES} or more of each kind: generated, "
            f"training and test"
        )
    rows = np.random.default_rng(0).permutation(len(train))[:count]
    sets = (generated[:count], train[rows], test[:count])
    of_seeds = [_figures_of(sets, seed) for seed in seeds]
    made, floor = (
        Figures(*map(np.array, zip(*part, strict=True))) for part in zip(*of_seeds, strict=True)
    )
    return Comparison(made, floor, count)


def lines(comparison: Comparison) -> list[str]:
    """The comparison as a table of text: each figure with its floor."""
    rows = [f"  {'against ' + str(comparison.num_images) + ' test images':20s} generated   real"]
    for name in Figures._fields:
        made, floor = getattr(comparison.generated, name), getattr(comparison.floor, name)
        texts = (f"{x.mean():9.4f} +- {np.std(x):.4f}" for x in (made, floor))
        rows.append(f"  {name.replace('_', ' '):18s}" + "   ".join(texts))
    return rows


def random_features(images: np.ndarray, seed: int) -> np.ndarray:
    """The outputs [N, 64] of a convolutional network with random weights for uint8 images."""
    params = _init(jax.random.key(seed), images.shape[1:])
    parts = [images[i : i + 500] for i in range(0, len(images), 500)]
    return np.concatenate([np.asarray(_apply(params, jnp.asarray(part))) for part in parts])


@partial(jax.jit, static_argnames="image_shape")
def _init(key: Key, image_shape: tuple[int, ...]) -> Params:
    return functional.init(NETWORK, key, jnp.zeros(image_shape))


@jax.jit
def _apply(params: Params, images: Array) -> Array:
    return functional.apply(NETWORK)(params, augment.to_unit_range(images))


def _figures_of(sets: tuple[np.ndarray, ...], seed: int) -> tuple[list[float], list[float]]:
    generated, train, test = (random_features(images, seed) for images in sets)
    return _figures(generated, test), _figures(train, test)


def _figures(sample: np.ndarray, real: np.ndarray) -> list[float]:
    return [
        distances.frechet(sample, real),
        distances.frechet_of_infinitely_many(sample, real),
        distances.kernel_distance(sample, real),
        *neighbourhoods.manifolds(real, sample),
        neighbourhoods.nearest_neighbour_test(real, sample).accuracy,
    ]
