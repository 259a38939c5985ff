# SPDX-License-Identifier: MIT
"""Pictures of any mode and size as uint8 arrays [H, W, C] of one shape."""

import numpy as np
from PIL import Image, ImageOps

_GREY_MODES = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N"}
_DEEP_MODES = {"I;16", "I;16B", "I;16L", "I;16N"}  # 16 bits a pixel
_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height


def num_channels(image: Image.Image) -> int:
    """1 for greyscale pictures and 3 for all others; an alpha channel does not count."""
    return 1 if image.mode in _GREY_MODES else 3


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after the camera's EXIF orientation is applied; reads the header only."""
    width, height = image.size
    # a PNG is decoded to the end in search of EXIF data that may follow the pixels
    has_exif = image.format != "PNG" or "exif" in image.info
    turned = has_exif and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def fit(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """The picture as uint8 [H, W, C], upright, resized and centre-cropped to `shape`.

    A square target of another size: the shorter side is resized to it (bicubic, antialiased) and
    the longer one cropped to its middle. Any other size must match, or ValueError is raised.
    Transparency is laid on white; 16-bit grey keeps its upper 8 bits.
    """
    height, width, channels = shape
    if max(image.size) > max(height, width):
        # JPEG can decode at 1/2, 1/4 or 1/8 for less; twice the target leaves room to resize well
        image.draft(None, (2 * width, 2 * height))
    ImageOps.exif_transpose(image, in_place=True)
    image = _opaque(image, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        if height != width:  # a native size, not one that was asked for
            raise ValueError(f"is {image.width}x{image.height}, expected {width}x{height}")
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(shape)


def fit_array(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The same for uint8 [h, w, c] with c = 1 or 3; returned as it is if it has the shape."""
    if image.shape == shape:
        return image
    return fit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), shape)


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """The picture in mode L or RGB, transparent parts laid on white."""
    if image.mode in _DEEP_MODES:  # Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; store 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)
