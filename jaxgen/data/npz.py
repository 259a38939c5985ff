# SPDX-License-Identifier: MIT
"""Images and labels from a NumPy `.npz` archive, without pickle and without trusting its sizes."""

import math
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

# names of (images, labels) for a set in two splits, and for one in a single piece
_TRAIN = (("x_train", "y_train"), ("train_images", "train_labels"))
_TEST = (("x_test", "y_test"), ("test_images", "test_labels"))
_WHOLE = (("images", "labels"), ("image", "label"))
_MAX_CLASSES = 100_000


class Arrays(NamedTuple):
    """One split, or a set in one piece."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int32 [N]
    num_classes: int  # over all splits; 0 without labels
    in_splits: bool  # whether the archive has a test split of its own


def read_split(path: pathlib.Path, split: str, max_bytes: int) -> Arrays:
    """The arrays of a split; of all examples when the archive has no test split.

    Floats are taken as [0, 1] and rounded to 0..255. Raises ValueError that names file and array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            in_splits = any(image_name in names for image_name, _ in _TEST)
            image_name, label_name = _find(names, split, in_splits, path)
            images = _read_array(archive, image_name, path, max_bytes)
            labels = {
                name: _as_labels(_read_array(archive, name, path, max_bytes), f"{path}[{name}]")
                for name in _label_names(label_name, in_splits) & names
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}); write it again") from error

    if labels and label_name not in labels:
        raise ValueError(
            f"{path} has labels for one split and no {label_name} for the other; give both or none"
        )
    images = _as_images(images, f"{path}[{image_name}]")
    if label_name in labels and len(labels[label_name]) != len(images):
        raise ValueError(
            f"{path} has {len(images)} images in {image_name} but {len(labels[label_name])} labels "
            f"in {label_name}; expected one label for each image"
        )
    num_classes = 1 + max((int(array.max(initial=-1)) for array in labels.values()), default=-1)
    return Arrays(images, labels.get(label_name), num_classes, in_splits)


def _find(names: set[str], split: str, in_splits: bool, path: pathlib.Path) -> tuple[str, str]:
    """Names of the images and labels of a split."""
    pairs = {"train": _TRAIN, "test": _TEST}[split] if in_splits else _TRAIN + _WHOLE
    for image_name, label_name in pairs:
        if image_name in names:
            return image_name, label_name
    raise ValueError(
        f"{path} holds {sorted(names)[:10]}; expected arrays images and labels, or x_train, "
        f"y_train, x_test and y_test"
    )


def _label_names(label_name: str, in_splits: bool) -> set[str]:
    """The labels of a split and those of its sibling, which may have more classes."""
    return {label_name, *(name for _, name in _TRAIN + _TEST)} if in_splits else {label_name}


def _read_array(
    archive: zipfile.ZipFile, name: str, path: pathlib.Path, max_bytes: int
) -> np.ndarray:
    """One array; what the zip and the npy header declare is compared before it is allocated."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > max_bytes:
        raise ValueError(
            f"{path}[{name}] declares {info.file_size:,} bytes, more than the limit of "
            f"{max_bytes:,}; raise max_bytes if the file is right"
        )
    with archive.open(info) as file:
        try:
            # version 1 is what numpy.savez writes for every plain array
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("the npy version is not 1.0")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise ValueError(f"{path}[{name}] has no valid npy header: {error}") from error
        if dtype.hasobject:
            raise ValueError(f"{path}[{name}] holds Python objects; store numbers instead")
        declared = math.prod(shape) * dtype.itemsize
        if file.tell() + declared != info.file_size:
            raise ValueError(
                f"{path}[{name}] declares {declared:,} bytes of values but holds "
                f"{info.file_size - file.tell():,}; it is damaged, write it again"
            )
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _as_images(images: np.ndarray, what: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{what} has shape {images.shape}; expected [N, H, W] or [N, H, W, C] with C = 1 or 3"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{what} is {images.dtype}; expected uint8, or floats in [0, 1]")
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise ValueError(
            f"{what} has floats from {low:.6g} to {high:.6g}; expected [0, 1], or store uint8"
        )
    return np.rint(images * 255).astype(np.uint8)


def _as_labels(labels: np.ndarray, what: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:  # as CIFAR is often stored
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{what} is {labels.dtype} of shape {labels.shape}; expected integers of shape [N]"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= _MAX_CLASSES):
        raise ValueError(
            f"{what} runs from {labels.min()} to {labels.max()}; expected class numbers from 0 "
            f"up to {_MAX_CLASSES - 1}"
        )
    return labels.astype(np.int32)
