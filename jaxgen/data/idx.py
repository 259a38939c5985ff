# SPDX-License-Identifier: MIT
"""IDX, the format of MNIST: a folder with the four files of the standard names, gzipped or not.

A file is two zero bytes, a type byte, the number of axes, their sizes as big-endian uint32, and
the values (yann.lecun.com/exdb/mnist). Only unsigned bytes are read.
"""

import gzip
import io
import math
import pathlib
import zlib

import numpy as np

from jaxgen import fields, files

_PREFIX = {"train": "train", "test": "t10k"}
_UINT8 = 0x08


def find(folder: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path] | None:
    """Finds the files of a split's images and labels; None when the folder has no such images."""
    images = _first_file(folder, f"{_PREFIX[split]}-images", "idx3-ubyte")
    if images is None:
        return None
    labels = _first_file(folder, f"{_PREFIX[split]}-labels", "idx1-ubyte")
    if labels is None:
        raise ValueError(
            f"{files.printable(images)} has no labels beside it; expected "
            f"{_PREFIX[split]}-labels-idx1-ubyte (or .gz) in the same folder"
        )
    return images, labels


def read_split(
    images_path: pathlib.Path, labels_path: pathlib.Path, max_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images uint8 [N, H, W, 1] and labels int32 [N].

    Raises ValueError that names the file when it is damaged, is not IDX of unsigned bytes, or
    declares more than `max_bytes`.
    """
    images = read(images_path, max_bytes)
    labels = read(labels_path, max_bytes)
    if images.ndim != 3 or labels.ndim != 1:
        raise ValueError(
            f"{files.printable(images_path)} has {images.ndim} axes and "
            f"{files.printable(labels_path)} has {labels.ndim}; "
            f"expected 3 (example, row, column) and 1"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{files.printable(images_path)} has {len(images)} images but "
            f"{files.printable(labels_path)} has {len(labels)} labels; "
            f"expected one label for each image"
        )
    if 0 in images.shape:
        raise ValueError(
            f"{files.printable(images_path)} has the shape {images.shape}, which holds no pixel; "
            f"fetch it again"
        )
    return images[..., None], labels.astype(np.int32)


def num_classes(labels_path: pathlib.Path, max_bytes: int) -> int:
    """Returns one more than the largest label of a file."""
    return int(read(labels_path, max_bytes).max(initial=0)) + 1


def read(path: pathlib.Path, max_bytes: int) -> np.ndarray:
    """Reads the uint8 array of an IDX file; sizes are checked before anything is allocated."""
    shown = files.printable(path)
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
            shape = _read_shape(file, shown)
            size = math.prod(shape)
            if size > max_bytes:
                raise ValueError(
                    f"{shown} declares {size:,} bytes, more than the limit of {max_bytes:,}; "
                    f"raise max_bytes if the file is right"
                )
            values = file.read(size + 1)  # one more, to notice a file that is too long
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{shown} cannot be read ({error}); fetch it again") from error
    if len(values) != size:
        held = f"only {len(values):,}" if len(values) < size else "more"
        raise ValueError(
            f"{shown} declares {size:,} values but holds {held}; it is damaged, fetch it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _is_gzip(path: pathlib.Path) -> bool:
    with path.open("rb") as file:  # by content: downloads and browsers rename files
        return file.read(2) == b"\x1f\x8b"


def _read_shape(file: io.BufferedIOBase, shown: str) -> tuple[int, ...]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise ValueError(
            f"{shown} is not an IDX file: it starts with {fields.shown(head)}, not two zero bytes"
        )
    if head[2] != _UINT8 or not 1 <= head[3] <= 4:
        raise ValueError(
            f"{shown} has IDX type {head[2]:#04x} and {head[3]} axes; expected unsigned bytes "
            f"(0x08) and 1 to 4 axes"
        )
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise ValueError(f"{shown} ends inside its header; it is damaged, fetch it again")
    return tuple(np.frombuffer(sizes, ">u4").tolist())


def _first_file(folder: pathlib.Path, stem: str, kind: str) -> pathlib.Path | None:
    # "." for "-" before idx is how some archives unpack
    names = [f"{stem}{sep}{kind}{end}" for end in ("", ".gz") for sep in "-."]
    return next((folder / name for name in names if (folder / name).is_file()), None)
