# SPDX-License-Identifier: MIT
"""A split of a data set as numbered examples, whatever it is stored in."""

import concurrent.futures
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxgen.data import pixels

SPLITS = ("train", "test")
_NUM_THREADS = 8  # Pillow decodes without the interpreter lock, so threads are enough
_BLOCK = 64  # examples a thread reads in its turn
_NUM_SHOWN = 5  # faults spelled out in one error


class Dataset(NamedTuple):
    """A split in host memory."""

    images: np.ndarray  # [N, H, W, C]; pictures are uint8 and C is 1 or 3
    labels: np.ndarray  # int32 [N]; all zeros when the source has no labels; [N, T] token ids
    class_names: tuple[str, ...]  # () when unlabelled


class Read(Protocol):
    """Images [n, H, W, C] and labels int32 [n] or [n, T] of the examples with these indices.

    Raises ValueError that names the file or record when one of them cannot be read.
    """

    def __call__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]: ...


class Source(NamedTuple):
    """A split that is read a few examples at a time; making one decodes no image."""

    num_examples: int
    image_shape: tuple[int, int, int]  # (H, W, C) of every image that `read` returns
    class_names: tuple[str, ...]  # () when unlabelled
    read: Read
    dtype: Any = np.uint8  # of the images; encoded ones are floats
    label_shape: tuple[int, ...] = ()  # of one label
    names: tuple[str, str] = ("image", "label")  # what a batch calls the two


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    *,
    image_size: int | None,
    channels: int | None,
) -> Source:
    """A Source over images uint8 [N, H, W, C] and labels [N] that are already in memory.

    Images are resized as they are read, so an enlarged set costs memory only where it is used.
    """
    _, height, width, stored_channels = images.shape
    if image_size is not None:
        height = width = image_size
    shape = (height, width, channels or stored_channels)

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        if images.shape[1:] == shape:
            return images[indices], labels[indices]
        fitted = np.stack([pixels.fit_array(images[i], shape) for i in indices])
        return fitted, labels[indices]

    return Source(len(images), shape, class_names, read)


def read_all(source: Source) -> Dataset:
    """Every example of a source, decoded by threads into two arrays.

    Raises one ValueError that counts the examples that cannot be read and shows the first few.
    """
    images = np.empty((source.num_examples, *source.image_shape), source.dtype)
    labels = np.empty((source.num_examples, *source.label_shape), np.int32)

    def read(indices: list[int]) -> None:
        images[indices], labels[indices] = source.read(indices)

    for_all(read, source.num_examples, "examples cannot be read")
    return Dataset(images, labels, source.class_names)


def for_all(read: Callable[[list[int]], None], number: int, what_failed: str) -> None:
    """Calls `read` on blocks that cover range(number), by threads; all ValueErrors become one."""
    indices = list(range(number))
    blocks = [indices[start : start + _BLOCK] for start in range(0, number, _BLOCK)]

    def faults_of(block: list[int]) -> list[str]:
        try:
            read(block)
        except ValueError as error:
            if len(block) == 1:
                return [str(error)]
            return [fault for i in block for fault in faults_of([i])]
        return []

    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        faults = [fault for block in pool.map(faults_of, blocks) for fault in block]
    if faults:
        raise ValueError(
            f"{len(faults)} of {number} {what_failed}; repair or remove them. The first are:\n  "
            + "\n  ".join(faults[:_NUM_SHOWN])
        )


def holdout(labels: np.ndarray, split: str, every: int = 10) -> np.ndarray:
    """Indices [M] of one split of a set that comes in one piece, in rising order.

    Of each class, the last of every `every` examples is for testing and the rest for training: the
    splits never overlap, never change, and keep the shares of the classes.
    """
    order = np.argsort(labels, kind="stable")
    of_class = labels[order]
    rank = np.empty(len(labels), np.int64)  # how many of the same class come before
    rank[order] = np.arange(len(labels)) - np.searchsorted(of_class, of_class)

    is_test = rank % every == every - 1
    indices = np.flatnonzero(is_test if split == "test" else ~is_test)
    if not len(indices):
        raise ValueError(
            f"the set has no test split and no class with {every} examples to hold one out of; "
            f"add a test split or use split='train'"
        )
    return indices
