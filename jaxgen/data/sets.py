# SPDX-License-Identifier: MIT
"""Data sets by name or path: uint8 arrays on the host, or a source to stream from.

Understood, in this order:

    digits                  the 1,797 real 8x8 handwritten digits that scikit-learn carries
    a prepared TFDS folder  .../mnist/3.0.1
    a folder of IDX files   the four files of MNIST, gzipped or not
    an .npz file            images and labels, or x_train, y_train, x_test and y_test
    a folder of pictures    class subfolders or flat, with train and test folders or without
    a TFDS name             mnist, cifar10, ...: read or prepared without TensorFlow

A set without a test split gives a tenth of each class to it (digits a sixth), always the same.
Images are uint8 [0, 255] as stored; they become float32 in [-1, 1] on the device.
"""

import math
import os
import pathlib
from typing import Any

import numpy as np

from jaxgen.data import idx, image_folder, npz, source, tfds

Dataset = source.Dataset
Source = source.Source


def load(
    name: str,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
    max_bytes: int | None = None,
) -> Dataset:
    """A whole split in host memory: images uint8 [N, H, W, C], labels int32 [N], class names.

    The arguments are those of `open_source`. Raises ValueError when the images would take more
    than `max_bytes` (default: a quarter of the host's memory), and one that lists what cannot be
    read.
    """
    data = open_source(
        name,
        split,
        image_size=image_size,
        channels=channels,
        data_dir=data_dir,
        max_bytes=max_bytes,
    )
    limit = max_bytes or _quarter_of_memory()
    if size_in_bytes(data) > limit:
        raise ValueError(
            f"{name} takes {size_in_bytes(data):,} bytes as {data.num_examples:,} images of shape "
            f"{data.image_shape}, more than the limit of {limit:,}; stream it or use smaller images"
        )
    return source.read_all(data)


def open_source(
    name: str,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
    max_bytes: int | None = None,
) -> Source:
    """The split to read example by example; no picture of a folder or TFDS set is decoded yet.

    image_size: pixels; the shorter side is resized (bicubic) to it and the longer one centre-
    cropped. None keeps the stored size, which must then be one for all images.
    channels: 1 or 3; None is 1 for a grey split and 3 for all others.
    data_dir: where prepared TFDS sets lie. max_bytes: limit for the arrays of IDX and .npz files.
    """
    _check(split, image_size, channels)
    limit = max_bytes or _quarter_of_memory()
    if name == "digits":
        return _from_whole(*_digits(), split, 6, image_size, channels)
    if not _is_path(name):
        return tfds.open_name(
            name, split, image_size=image_size, channels=channels, data_dir=data_dir
        )

    path = pathlib.Path(name).expanduser()
    if path.is_file():
        return _open_npz(path, split, image_size, channels, limit)
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}; check the path")
    if tfds.is_prepared_folder(path):
        return tfds.open_folder(path, split, image_size=image_size, channels=channels)
    if idx.find(path, "train"):
        return _open_idx(path, split, image_size, channels, limit)
    files = image_folder.find(path, split)
    return image_folder.open_split(files, image_size=image_size, channels=channels)


def size_in_bytes(data: Source) -> int:
    """Bytes of all images of a split, to decide whether they fit on a device."""
    return data.num_examples * math.prod(data.image_shape) * np.dtype(data.dtype).itemsize


def _check(split: str, image_size: int | None, channels: int | None) -> None:
    if split not in source.SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(source.SPLITS)}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image size is {image_size}; expected at least 1 pixel")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels}; expected 1 (grey) or 3 (colour)")


def _is_path(name: str) -> bool:
    """Whether a name means a file or folder; emnist/letters has a slash and is a TFDS name."""
    looks = name.startswith(("/", "./", "../", "~")) or name.endswith(".npz")
    return looks or name in (".", "..") or pathlib.Path(name).exists()


def _digits() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Alpaydin and Kaynak 1998, the test part of the UCI optical digits: values 0 to 16."""
    import sklearn.datasets  # about a second

    digits: Any = sklearn.datasets.load_digits()  # a Bunch, or a tuple on request
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
    return images, digits.target.astype(np.int32), tuple(str(name) for name in digits.target_names)


def _open_idx(
    path: pathlib.Path, split: str, image_size: int | None, channels: int | None, limit: int
) -> Source:
    files = {name: found for name in source.SPLITS if (found := idx.find(path, name))}
    names = _number_names(max(idx.num_classes(labels, limit) for _, labels in files.values()))
    if "test" in files:
        images, labels = idx.read_split(*files[split], limit)
        return source.from_arrays(images, labels, names, image_size=image_size, channels=channels)
    images, labels = idx.read_split(*files["train"], limit)
    return _from_whole(images, labels, names, split, 10, image_size, channels)


def _open_npz(
    path: pathlib.Path, split: str, image_size: int | None, channels: int | None, limit: int
) -> Source:
    images, labels, num_classes, in_splits = npz.read_split(path, split, limit)
    names = _number_names(num_classes)
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    if in_splits:
        return source.from_arrays(images, labels, names, image_size=image_size, channels=channels)
    return _from_whole(images, labels, names, split, 10, image_size, channels)


def _from_whole(
    images: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    split: str,
    every: int,
    image_size: int | None,
    channels: int | None,
) -> Source:
    """One split of a set that comes in one piece."""
    indices = source.holdout(labels, split, every)
    return source.from_arrays(
        images[indices], labels[indices], names, image_size=image_size, channels=channels
    )


def _number_names(num_classes: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(num_classes))


def _quarter_of_memory() -> int:
    # arrays from a file are copied as they are divided into splits and resized
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
