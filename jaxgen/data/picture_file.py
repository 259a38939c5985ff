# SPDX-License-Identifier: MIT
"""Opens picture files from anywhere: safe formats only, few pixels at a time in all threads."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import IO

from PIL import Image, UnidentifiedImageError

from jaxgen import files

# decoded inside this process; Pillow's EPS would start Ghostscript, whatever a file is called
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP",
)  # fmt: skip
_FOREIGN_SUFFIXES = (
    ".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".jxl", ".nef", ".raw",
    ".svg", ".svgz",
)  # fmt: skip
_MOST_BYTES = 2**30  # some decoders read a file whole
_MOST_PIXELS = 2**26  # decoded at one time by all threads together; about 20 bytes a pixel
_budget = threading.Condition()
_pixels_in_use = [0]


@functools.cache
def formats() -> tuple[str, ...]:
    """Names the formats that are opened: those of the list above that this Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Lists the lower-case endings of files in these formats, such as .png and .jfif."""
    names = formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in names)


@functools.cache
def foreign_suffixes() -> frozenset[str]:
    """Lists the lower-case endings of pictures in other formats, such as .heic and .psd."""
    formats()  # registers the extensions
    return frozenset((*Image.registered_extensions(), *_FOREIGN_SUFFIXES)) - suffixes()


def open_path(path: str | os.PathLike[str]) -> Image.Image:
    """Opens the picture of a regular file and reads its header only; the caller closes it.

    Raises ValueError that names the file.
    """
    shown = files.printable(path)
    if not os.path.exists(path):
        raise ValueError(f"{shown}: No such file")
    if not os.path.isfile(path):
        raise ValueError(f"{shown}: not a regular file")
    if os.path.getsize(path) > _MOST_BYTES:
        raise ValueError(f"{shown}: larger than {_MOST_BYTES:,} bytes, the limit for a picture")
    return open_file(path, shown)


def open_file(file: str | os.PathLike[str] | IO[bytes], shown: str) -> Image.Image:
    """Does the same with a path or an open file that is regular; `shown` names it in errors."""
    try:
        image = Image.open(file, formats=formats())
    except UnidentifiedImageError as error:
        is_empty = isinstance(file, str | os.PathLike) and os.path.getsize(file) == 0
        kind = "an empty file" if is_empty else "not a picture in a format that is read"
        raise ValueError(f"{shown}: {kind}") from error
    except Exception as error:  # decoders also raise SyntaxError, struct.error, IndexError, ...
        raise ValueError(f"{shown}: {files.printable(error)}") from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow itself only warns
        image.close()
        raise ValueError(f"{shown}: {image.width}x{image.height} is over Pillow's limit of {limit}")
    return image


def read(path: str | os.PathLike[str]) -> Image.Image:
    """Reads a whole picture and closes its file. Raises ValueError that names the file."""
    with open_path(path) as image:
        try:
            with room_for(image):
                image.load()
        except Exception as error:  # see open_file
            raise ValueError(f"{files.printable(path)}: {files.printable(error)}") from error
        copy = image.copy()
        copy.format = image.format  # says which 16-bit pictures are of mode I
        return copy


@contextlib.contextmanager
def room_for(image: Image.Image) -> Iterator[None]:
    """Waits until the threads together decode few enough pixels; a larger picture goes alone."""
    pixels = image.width * image.height
    with _budget:
        _budget.wait_for(
            lambda: not _pixels_in_use[0] or _pixels_in_use[0] + pixels <= _MOST_PIXELS
        )
        _pixels_in_use[0] += pixels
    try:
        yield
    finally:
        with _budget:
            _pixels_in_use[0] -= pixels
            _budget.notify_all()
