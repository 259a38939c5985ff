# SPDX-License-Identifier: MIT
"""What images are compared by: features of networks, random, trained on the data, or Inception's.

Networks with random weights have been shaped by no data and no training; Naeem et al. 2020
(arXiv:2002.09797), section 4, recommend them where no network of the domain is at hand. The judge
is such a network, and has seen the training images. Inception makes the figures of the literature.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.evaluate import inception, judge
from jaxgen.nn import classifier, functional
from jaxgen.nn import inception as inception_network
from jaxgen.train import augment
from jaxgen.types import Array, Key, Params

Extract = Callable[[np.ndarray], np.ndarray]  # uint8 images [N, H, W, C] -> features [N, width]
RANDOM_WIDTH = 64
NETWORK = classifier.Classifier(RANDOM_WIDTH)


class Features(NamedTuple):
    """Networks by whose features images are compared; each makes its own figures."""

    name: str
    width: int
    networks: tuple[Extract, ...]
    frechet: str = "frechet"  # the name of their Frechet distance

    @property
    def least_images(self) -> int:
        """Counts the images that a line of Frechet distances needs."""
        return 2 * (self.width + 1)


def by_name(text: str, train_judge: Callable[[], judge.Judge]) -> Features:
    """Builds the features "random", "judge", "inception:FILE" or "inception:FILE:SHA256".

    A digest says which weights the caller means, and the file must match it: only then is their
    Frechet distance named FID. Raises ValueError for others, and for a file that is missing,
    damaged or of another digest.
    """
    kind, _, rest = text.partition(":")
    match kind:
        case "random" if not rest:
            return RANDOM
        case "judge" if not rest:
            return Features("the judge", classifier.NUM_FEATURES, (train_judge().features,))
        case "inception" if rest:
            return _inception(rest)
    raise ValueError(
        f"unknown features {text!r}; use random, judge, inception:FILE or inception:FILE:SHA256"
    )


def _inception(rest: str) -> Features:
    """Builds the features of Inception with the weights in "FILE" or "FILE:SHA256"."""
    parts = re.fullmatch(r"(?P<file>.+?)(:(?P<digest>[0-9a-fA-F]{64}))?", rest)
    if parts is None:
        raise ValueError(f"inception:{rest!r} names no file")
    digest = parts["digest"]
    params = inception.read(Path(parts["file"]), digest)
    name = f"Inception, SHA-256 {digest[:8]}..." if digest else "Inception, weights not verified"
    extract = inception.features_of(params)
    return Features(
        name, inception_network.NUM_FEATURES, (extract,), "FID" if digest else "frechet"
    )


def random_features(images: np.ndarray, seed: int) -> np.ndarray:
    """Computes the outputs [N, 64] of a random convolutional network for uint8 images."""
    params = _init(jax.random.key(seed), images.shape[1:])
    parts = [images[i : i + 500] for i in range(0, len(images), 500)]
    return np.concatenate([np.asarray(_apply(params, jnp.asarray(part))) for part in parts])


RANDOM = Features(
    "3 random networks", RANDOM_WIDTH, tuple(partial(random_features, seed=i) for i in range(3))
)


@partial(jax.jit, static_argnames="image_shape")
def _init(key: Key, image_shape: tuple[int, ...]) -> Params:
    return functional.init(NETWORK, key, jnp.zeros(image_shape))


@jax.jit
def _apply(params: Params, images: Array) -> Array:
    return functional.apply(NETWORK)(params, augment.to_unit_range(images))
