# SPDX-License-Identifier: MIT
"""Pillow pictures of any mode and size as uint8 arrays [H, W, C] of one shape."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps

from jaxgen import files
from jaxgen.data import picture_file

# 16 bits a pixel; 16 bits of a .pgm come as I, as do 32 bits of a .tif, which have no known range
DEEP_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_GREY_MODES = {"1", "L", "LA", "La", "F"} | DEEP_MODES
_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height


def num_channels(image: Image.Image) -> int:
    """1 for greyscale pictures and 3 for all others; an alpha channel does not count."""
    return 1 if image.mode in _GREY_MODES else 3


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns height and width as the EXIF orientation turns them; reads the header only."""
    width, height = image.size
    # a PNG is decoded to the end in search of EXIF data that may follow the pixels
    has_exif = image.format != "PNG" or "exif" in image.info
    turned = has_exif and _orientation(image) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def range_of(image: Image.Image) -> tuple[int, int]:
    """Returns the largest stored value and the largest possible one, 255 or 65535.

    Palettes, CMYK and alpha channels say themselves what is white: they count as fully bright.
    """
    if image.mode in DEEP_MODES:
        return int(deep(image).max()), 65535
    if image.mode not in ("L", "RGB"):
        return 255, 255
    return int(np.asarray(image).max()), 255


def is_binary(ranges: Iterable[tuple[int, int]], name: str) -> bool:
    """Says whether pictures of these ranges hold only 0 and 1, which then are black and white.

    Looks at no more of them than it takes to meet one that uses its range. Raises ValueError for
    16 bits of which none uses the upper 8.
    """
    peak = 0
    for high, most in ranges:
        if high > (1 if most == 255 else 255):
            return False
        peak = max(peak, high)
    if peak > 1:
        raise ValueError(f"{name} has 16 bits, but the largest value is {peak}; store 8 bits")
    return peak == 1


def fit(image: Image.Image, shape: tuple[int, int, int], binary: bool = False) -> np.ndarray:
    """Brings a picture to uint8 [H, W, C]: upright, resized and centre-cropped to `shape`.

    binary: whether its values are only 0 and 1, black and white.

    A square target of another size: the shorter side is resized to it (bicubic, antialiased) and
    the longer one cropped to its middle. Any other size must match, or ValueError is raised.
    """
    height, width, channels = shape
    if max(image.size) > max(height, width):
        # JPEG can decode at 1/2, 1/4 or 1/8 for less; twice the target leaves room to resize well
        image.draft(None, (2 * width, 2 * height))
    with picture_file.room_for(image):
        image = opaque(upright(image), "L" if channels == 1 else "RGB", binary)
        if image.size != (width, height):
            if height != width:  # a stored size, not one that the caller wants
                raise ValueError(f"is {image.width}x{image.height}, expected {width}x{height}")
            image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
        return np.asarray(image, np.uint8).reshape(shape)


def fit_array(image: np.ndarray, shape: tuple[int, int, int], binary: bool = False) -> np.ndarray:
    """Does the same with uint8 [h, w, c], c = 1 or 3; an array of the shape stays as it is."""
    if binary:
        _check_binary(int(image.max()))
        image = image * 255
    if image.shape == shape:
        return image
    return fit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), shape)


def upright(image: Image.Image) -> Image.Image:
    """Turns the picture as the EXIF orientation of the camera says."""
    if _orientation(image) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return turned


def _orientation(image: Image.Image) -> int:
    """Reads how a camera was held, 1 for upright; ValueError for EXIF data that are damaged."""
    try:
        exif = image.getexif()
        if not exif and (data := image.info.get("exif")):  # a JPEG forgets an error when opened
            Image.Exif().load(data)
        return exif.get(_ORIENTATION, 1)
    except Exception as error:  # Pillow's are SyntaxError, struct.error, ...
        raise ValueError(
            f"its EXIF data are damaged ({files.printable(error)}), so that nothing tells which "
            "side is up; save the picture again without them"
        ) from error


def opaque(image: Image.Image, mode: str, binary: bool = False) -> Image.Image:
    """Converts a picture to mode L or RGB with 8 bits, transparent parts laid on white."""
    if binary and (image.mode in DEEP_MODES or image.mode in ("L", "RGB")):
        x = np.asarray(image)
        _check_binary(int(x.max()))
        return Image.fromarray(x.astype(np.uint8) * 255).convert(mode)
    if image.mode in DEEP_MODES:
        return Image.fromarray((deep(image) >> 8).astype(np.uint8)).convert(mode)
    if image.mode == "F":
        raise ValueError("pixels of mode F have no known range; store 8 or 16 bits")
    if image.has_transparency_data:
        image = with_alpha(image)
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _check_binary(high: int) -> None:
    if high > 1:
        raise ValueError(f"has the value {high}, where other pictures of the set have only 0 and 1")


def deep(image: Image.Image) -> np.ndarray:
    """Reads the 16-bit values [H, W]; Pillow's own conversion would clip them at 255."""
    x = np.asarray(image)
    is_deep = image.mode != "I" or image.format == "PPM" or (x.min() >= 0 and 255 < x.max() < 2**16)
    if not is_deep:
        raise ValueError("pixels of mode I have no known range; store 8 or 16 bits")
    return x.astype(np.uint16)


def with_alpha(image: Image.Image) -> Image.Image:
    """Converts a picture to mode RGBA; premultiplied grey has no direct way there."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
