# SPDX-License-Identifier: MIT
"""The images of `iwae_table.py`, and the digests that tell them from others."""

import hashlib
from typing import NamedTuple

import numpy as np

from jaxgen.data import sets


class Data(NamedTuple):
    """What the table trains and tests on."""

    images: np.ndarray  # uint8 [N, H, W, C], whole batches
    test: dict[str, np.ndarray]  # "images" and "labels"
    digest: str  # of the training images
    test_digest: str


def read(name: str, size: int, num_test: int | None) -> Data:
    """Reads the first 59,600 images of MNIST, as the code does; of other sets, whole batches.

    Raises ValueError for a set that has less than one batch of `size`, or fewer test images than
    are asked for.
    """
    images, test = sets.load(name, "train").images, sets.load(name, "test")
    count = 59_600 if len(images) == 60_000 else len(images)
    if count < size:
        raise ValueError(f"{name} has {count} training images, less than --batch-size {size}")
    if (num_test or 0) > len(test.images):
        raise ValueError(
            f"--test-images is {num_test}, and {name} has {len(test.images)}; use at most so many"
        )
    images, tested = images[: count // size * size], test.images[:num_test]
    parts = {"images": tested, "labels": test.labels[:num_test]}
    return Data(images, parts, _digest(images), _digest(tested))


def _digest(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()[:16]
