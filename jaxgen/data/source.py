# SPDX-License-Identifier: MIT
"""A split of a data set as numbered examples, whatever it is stored in."""

import concurrent.futures
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxgen import fields, files
from jaxgen.data import pillow

SPLITS = ("train", "test")
SAMPLE = 64  # pictures that are looked at to learn what all of a set are like
_NUM_THREADS = 8  # Pillow decodes without the interpreter lock, so threads are enough
_BLOCK = 64  # examples a thread reads in its turn
_NUM_SHOWN = 5  # faults spelled out in one error, classes in one description


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
    description: str = ""  # what was read and what was skipped, in one line


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    *,
    image_size: int | None,
    channels: int | None,
    description: str = "",
) -> Source:
    """Makes a Source of images uint8 [N, H, W, C] and labels [N] in memory.

    Images are resized as they are read, so an enlarged set costs memory only where it is used.
    """
    _, height, width, stored_channels = images.shape
    if image_size is not None:
        height = width = image_size
    shape = (height, width, channels or stored_channels)

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        if images.shape[1:] == shape:
            return images[indices], labels[indices]
        fitted = np.stack([pillow.fit_array(images[i], shape) for i in indices])
        return fitted, labels[indices]

    return Source(len(images), shape, class_names, read, description=description)


def describe(
    split: str, labels: np.ndarray, class_names: tuple[str, ...], notes: list[str] | None = None
) -> str:
    """Describes a split in one line: how many images there are of each class, and the notes."""
    line = f"{split} {len(labels):,} image{'s' * (len(labels) != 1)}"
    if class_names:
        counts = np.bincount(labels, minlength=len(class_names)).tolist()
        pairs = list(zip(class_names, counts, strict=True))
        shown = [f"{files.printable(name, 40)} {count:,}" for name, count in pairs[:_NUM_SHOWN]]
        more = [f"{len(pairs) - _NUM_SHOWN} more"] if len(pairs) > _NUM_SHOWN else []
        plural = "es" * (len(pairs) > 1)
        line += f" of {len(pairs)} class{plural} ({', '.join([*shown, *more])})"
    return "; ".join([line, *(notes or [])])


def describe_holdout(labels: np.ndarray, split: str, every: int = 10) -> str:
    """Writes the note on a split that `holdout` makes of a set with these labels."""
    indices = _held_out(labels, every)
    where = "held out for testing" if split == "train" else "held out of training"
    if not len(indices):
        return f"too few of the {len(labels):,} to hold any out: tests are on the training images"
    sizes = np.bincount(labels)
    if sizes.max() < every:  # not of each class
        return f"{len(indices):,} of {len(labels):,} {where}"
    part = "a tenth" if every == 10 else f"one of {every}"
    num_small = np.count_nonzero((sizes > 0) & (sizes < every))
    small = f", none of the classes with fewer than {every} images ({num_small})"
    return f"{part} {where}{small if num_small else ''}"


def check_size(image_size: Any) -> None:
    """Raises ValueError unless this is a number of pixels, or None."""
    size = fields.plain(image_size)
    whole = isinstance(size, int) and not isinstance(size, bool)
    if size is not None and not (whole and size >= 1):
        raise ValueError(f"image size is {fields.shown(image_size)}; expected at least 1 pixel")


def size_in_bytes(source: Source) -> int:
    """Counts the bytes of all images of a split, to decide whether they fit on a device."""
    return source.num_examples * math.prod(source.image_shape) * np.dtype(source.dtype).itemsize


def quarter_of_memory() -> int:
    """Returns the bytes that a set's arrays may take: dividing and resizing copies them."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def read_all(source: Source, max_bytes: int | None = None) -> Dataset:
    """Reads every example of a source, decoded by threads, into two arrays.

    Raises ValueError when the images would take more than `max_bytes` (default: a quarter of the
    host's memory), and one that counts the examples that cannot be read and shows the first few.
    """
    limit = max_bytes or quarter_of_memory()
    if size_in_bytes(source) > limit:
        raise ValueError(
            f"the set takes {size_in_bytes(source):,} bytes as {source.num_examples:,} images of "
            f"shape {source.image_shape}, more than the limit of {limit:,}; stream it or use "
            f"smaller images"
        )
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
    """Returns the indices [M], rising, of one split of a set that comes in one piece.

    Of each class, the last of every `every` examples is for testing and the rest for training: the
    splits never overlap, never change, and keep the shares of the classes. If all classes are
    smaller, as with five pictures each, the same share of all examples is held out, and of no class
    its first. Of a set with fewer than `every` examples both splits are the whole.
    """
    test = _held_out(labels, every)
    if not len(test):
        return np.arange(len(labels))
    return test if split == "test" else np.delete(np.arange(len(labels)), test)


def _held_out(labels: np.ndarray, every: int) -> np.ndarray:
    """Returns the indices, rising, that are for testing only."""
    rank = _rank_in_class(labels)
    of_class = np.flatnonzero(rank % every == every - 1)
    if len(of_class):
        return of_class
    candidates = np.flatnonzero(rank > 0)
    number = min(len(labels) // every, len(candidates))
    if not number:
        return np.array([], np.int64)
    return candidates[np.arange(1, number + 1) * len(candidates) // number - 1]


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Counts for each example how many of the same class come before it."""
    order = np.argsort(labels, kind="stable")
    of_class = labels[order]
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.searchsorted(of_class, of_class)
    return rank
