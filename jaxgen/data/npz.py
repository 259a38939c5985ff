# SPDX-License-Identifier: MIT
"""Images and labels from a NumPy `.npz` archive, without pickle and without trusting its sizes."""

import io
import math
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from jaxgen import files
from jaxgen.data import file_kind, pixels

# names of (images, labels) for a set in two splits, and for one in a single piece
_TRAIN = (("x_train", "y_train"), ("train_images", "train_labels"))
_TEST = (("x_test", "y_test"), ("test_images", "test_labels"))
_WHOLE = (("images", "labels"), ("image", "label"))
_MAX_CLASSES = 100_000
_MOST_ARRAYS = 1000
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; others need memory


class Arrays(NamedTuple):
    """One split, or a set in one piece."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray | None  # int32 [N]
    num_classes: int  # over all splits; 0 without labels
    in_splits: bool  # whether the archive has a test split of its own
    unread: list[str]  # names of arrays that are neither images nor labels


def read_split(path: pathlib.Path, split: str, max_bytes: int) -> Arrays:
    """Reads the arrays of a split; of all examples when the archive has no test split.

    Pixels mean what `pixels` says. Raises ValueError that names file and array.
    """
    with _open(path) as archive:
        names = {name[:-4] for name in archive.namelist() if name.endswith(".npy")}
        in_splits = any(image_name in names for image_name, _ in _TEST)
        image_name, label_name = _find(names, archive, split, in_splits, path)
        what = f"{files.printable(path)}[{image_name}]"
        images = _as_images(_read_array(archive, image_name, what, max_bytes), what)
        labels = {}
        for name in sorted(_label_names(label_name, in_splits) & names):
            what = f"{files.printable(path)}[{name}]"
            labels[name] = _as_labels(_read_array(archive, name, what, max_bytes), what)

    if labels and label_name not in labels:
        raise ValueError(
            f"{files.printable(path)} has labels for one split and no {label_name} for the other; "
            f"give both or none"
        )
    if label_name in labels and len(labels[label_name]) != len(images):
        raise ValueError(
            f"{files.printable(path)} has {len(images)} images in {image_name} but "
            f"{len(labels[label_name])} labels in {label_name}; expected one label for each image"
        )
    num_classes = 1 + max((int(array.max(initial=-1)) for array in labels.values()), default=-1)
    known = {name for pair in _TRAIN + _TEST + _WHOLE for name in pair} if in_splits else set()
    unread = sorted(names - known - {image_name, label_name})
    return Arrays(images, labels.get(label_name), num_classes, in_splits, unread)


def _open(path: pathlib.Path) -> zipfile.ZipFile:
    """Opens the archive and reads its list of members."""
    refusal = file_kind.refusal(path)
    if refusal is not None:
        raise ValueError(f"{files.printable(path)} {refusal}")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged lists also raise struct.error, UnicodeDecodeError, ...
        is_npz = path.suffix.lower() == ".npz"
        advice = "write it again" if is_npz else "give an .npz of images and labels, or a folder"
        raise ValueError(
            f"{files.printable(path)} cannot be read as .npz ({files.printable(error)}); {advice}"
        ) from error
    if len(archive.namelist()) > _MOST_ARRAYS:
        archive.close()
        raise ValueError(f"{files.printable(path)} holds more than {_MOST_ARRAYS} arrays")
    return archive


def _find(
    names: set[str], archive: zipfile.ZipFile, split: str, in_splits: bool, path: pathlib.Path
) -> tuple[str, str]:
    """Finds the names of the images and labels of a split."""
    pairs = {"train": _TRAIN, "test": _TEST}[split] if in_splits else _TRAIN + _WHOLE
    for image_name, label_name in pairs:
        if image_name in names:
            return image_name, label_name
    expected = "expected arrays images and labels, or x_train, y_train, x_test and y_test"
    if not names:
        raise ValueError(
            f"{files.printable(path)} is a zip archive without NumPy arrays "
            f"({len(archive.namelist())} files); unpack it and give the folder; else {expected}"
        )
    shown = ", ".join(repr(files.printable(name, 60)) for name in sorted(names)[:10])
    raise ValueError(f"{files.printable(path)} holds [{shown}]; {expected}")


def _label_names(label_name: str, in_splits: bool) -> set[str]:
    """Names the labels of a split and those of its sibling, which may have more classes."""
    return {label_name, *(name for _, name in _TRAIN + _TEST)} if in_splits else {label_name}


def _read_array(archive: zipfile.ZipFile, name: str, what: str, max_bytes: int) -> np.ndarray:
    """Reads one array; what the zip and the npy header declare is compared first."""
    data = _read_member(archive, name, what, max_bytes)
    content = io.BytesIO(data)
    try:
        # version 1 is what numpy.savez writes for every plain array
        if np.lib.format.read_magic(content) != (1, 0):
            raise ValueError("the npy version is not 1.0")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(content)
    except Exception as error:  # the header is a Python literal: also SyntaxError, TokenError, ...
        raise ValueError(f"{what} has no valid npy header: {files.printable(error)}") from error
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects; store numbers instead")
    if dtype.kind not in "biuf" or dtype.names is not None:
        raise ValueError(f"{what} holds values of type {files.printable(dtype, 60)}; store numbers")
    if not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise ValueError(f"{what} has the impossible shape {files.printable(shape, 60)}")
    declared, size = math.prod(shape) * dtype.itemsize, len(data) - content.tell()
    if declared != size or not size:
        raise ValueError(
            f"{what} has shape {shape} and declares {declared:,} bytes of values but holds "
            f"{size:,}; it is empty or damaged, write it again"
        )
    values = np.frombuffer(data, dtype, offset=content.tell())
    return values.reshape(shape, order="F" if is_fortran else "C")


def _read_member(archive: zipfile.ZipFile, name: str, what: str, max_bytes: int) -> bytes:
    """Reads the bytes of a member, at most max_bytes when unpacked."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > max_bytes:
        raise ValueError(
            f"{what} declares {info.file_size:,} bytes, more than the limit of {max_bytes:,}; "
            f"raise max_bytes if the file is right"
        )
    if info.compress_type not in _PACKINGS or info.flag_bits & 1:
        raise ValueError(f"{what} is encrypted or not packed as numpy.savez does; write it again")
    try:
        with archive.open(info) as file:
            content = file.read(max_bytes + 1)  # to the end, where the checksum is compared
    except Exception as error:  # zlib.error, EOFError, BadZipFile, struct.error, ...
        raise ValueError(
            f"{what} cannot be read as .npz ({files.printable(error)}); write it again"
        ) from error
    if len(content) != info.file_size:
        raise ValueError(
            f"{what} declares {info.file_size:,} bytes but holds {len(content):,}; write it again"
        )
    return content


def _as_images(images: np.ndarray, what: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 2, 3, 4) or 0 in images.shape:
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        advice = "; put the channels last: transpose(0, 2, 3, 1)" * first
        raise ValueError(
            f"{what} has shape {images.shape}; expected [N, H, W] or [N, H, W, C] with C = 1 or 3 "
            f"(2 or 4 with alpha){advice}"
        )
    return pixels.to_bytes(images, what)


def _as_labels(labels: np.ndarray, what: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:  # as CIFAR is often stored
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        rows = labels.ndim == 2 and labels.size and np.issubdtype(labels.dtype, np.number)
        is_one_hot = bool(rows) and np.array_equal(labels.sum(1), labels.max(1))
        advice = "; of one-hot labels take argmax(1)" * is_one_hot
        raise ValueError(
            f"{what} is {labels.dtype} of shape {labels.shape}; expected integers of shape [N]"
            f"{advice}"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= _MAX_CLASSES):
        raise ValueError(
            f"{what} runs from {labels.min()} to {labels.max()}; expected class numbers from 0 "
            f"up to {_MAX_CLASSES - 1}"
        )
    return labels.astype(np.int32)
