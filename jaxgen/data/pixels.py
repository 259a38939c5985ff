# SPDX-License-Identifier: MIT
"""What a pixel means, the same for a call of the pipeline, the command line and data sets.

    Pillow pictures, paths   1, 8 or 16 bits, palette, CMYK, ...; turned upright as EXIF says
    bool                     black and white
    uint8                    0 to 255; black and white if there are only 0 and 1 in the array
    data sets of pictures    as uint8 or uint16 arrays of all their pictures
    uint16                   0 to 65535, of which the upper 8 bits are kept; or only 0 and 1
    floats                   0 to 1, or -1 to 1 if there are negative ones

Arrays are [H, W], [H, W, C] or [N, H, W, C] with 1 channel (grey), 2 (grey, alpha), 3 (RGB) or
4 (RGB, alpha); torch tensors have C before H. Transparent parts lie on white, in a mask on black.
Everything else is a ValueError.
"""

import os
from typing import Any

import numpy as np
from PIL import Image

from jaxgen import files
from jaxgen.data import picture_file, pillow

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L
_RANGES = "uint8 (0 to 255), uint16, bool, or floats in [0, 1] or [-1, 1]"


def images(value: Any, name: str = "the image") -> np.ndarray:
    """Reads one picture or a list as float32 [N, H, W, 3] in [-1, 1]; `name` is for errors."""
    entries = _entries(value, name)
    arrays = [_colours(entry, name) for entry in entries]
    # one range for the floats of a call: a bright picture in [-1, 1] may have no negative pixel
    signed = any(x.dtype.kind == "f" and x.min() < 0 for x in arrays)
    scaled = [
        x if isinstance(entry, Image.Image) else full_scale(x, name, signed)
        for entry, x in zip(entries, arrays, strict=True)
    ]
    return _batch([_to_rgb(x) for x in scaled], name)


def masks(value: Any, name: str = "the mask") -> np.ndarray:
    """Reads one mask or a list of them as float32 [N, H, W, 1] of zeros and ones.

    White, true, half and above are ones. Numbers of any other type must be only 0 and 1, or only
    0 and 255.
    """
    x = _batch([_mask(entry, name) for entry in _entries(value, name)], name)
    return (x >= 0.5).astype(np.float32)


def image_file(path: str | os.PathLike[str]) -> Image.Image:
    """Reads the picture in a file as RGB, upright and laid on white."""
    return Image.fromarray(_pillow(picture_file.read(path), "RGB", files.printable(path)))


def mask_file(path: str | os.PathLike[str]) -> Image.Image:
    """Reads the mask in a file as a grey picture of only 0 and 255, upright."""
    return Image.fromarray((masks(path)[0, ..., 0] * 255).astype(np.uint8))


def full_scale(x: np.ndarray, name: str, signed: bool | None = None) -> np.ndarray:
    """Scales pixels to uint8 in [0, 255] or, if they are floats, to float32 in [-1, 1].

    signed: whether floats are taken as [-1, 1]; None is if there are negative ones.
    """
    if x.size == 0:
        raise ValueError(f"{name} has shape {x.shape}, which holds no pixel")
    x = _native(x)
    if x.dtype == bool:
        return x.astype(np.uint8) * 255
    if x.dtype in (np.uint8, np.uint16):
        high = int(x.max())
        if high == 1:
            return x.astype(np.uint8) * 255
        if x.dtype == np.uint8:
            return x
        if 1 < high <= 255:
            raise ValueError(
                f"{name} is uint16, but its largest value is {high} of 65535; store uint8"
            )
        return (x >> 8).astype(np.uint8)
    if x.dtype.kind != "f":
        raise ValueError(f"{name} has type {x.dtype}; expected {_RANGES}")
    low, high = float(x.min()), float(x.max())
    if not (low >= -1 and high <= 1):  # also true of NaN
        raise ValueError(f"{name} has floats from {low:.6g} to {high:.6g}; expected {_RANGES}")
    signed = low < 0 if signed is None else signed
    x = x.astype(np.float32)
    return x if signed else x * 2 - 1


def to_bytes(x: np.ndarray, name: str) -> np.ndarray:
    """Brings pixels [..., C] to uint8 [0, 255] with 1 or 3 channels, laid on white."""
    x = on_white(full_scale(x, name))
    return x if x.dtype == np.uint8 else np.rint((x + 1) * 127.5).astype(np.uint8)


def on_white(x: np.ndarray) -> np.ndarray:
    """Lays pixels at full scale on white, if they have an alpha channel."""
    if x.shape[-1] not in (2, 4):
        return x
    colour, alpha = x[..., :-1], x[..., -1:]
    if x.dtype == np.uint8:
        colour, alpha = colour.astype(np.uint16), alpha.astype(np.uint16)
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    opacity = (alpha + 1) / 2
    return colour * opacity + (1 - opacity)


def _entries(value: Any, name: str) -> list[Any]:
    """Lists the pictures of a list or tuple, or the single one; files are read."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    if not entries:
        raise ValueError(f"{name} is an empty list; give at least one entry")
    return [
        picture_file.read(entry) if isinstance(entry, str | os.PathLike) else entry
        for entry in entries
    ]


def _batch(arrays: list[np.ndarray], name: str) -> np.ndarray:
    if len({x.shape[1:] for x in arrays}) > 1:
        plural = name + "s"
        raise ValueError(f"{plural} differ in size; give {plural[4:]} of one size in a batch")
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _colours(entry: Any, name: str) -> np.ndarray:
    """Reads [N, H, W, C]: at full scale from a Pillow picture, else of the array's own type."""
    if isinstance(entry, Image.Image):
        return _pillow(entry, "RGB", name)[None]
    x, channels_first = _array(entry, name)
    axes = x.shape[-3:]
    if channels_first and x.ndim >= 3 and axes[0] in (1, 2, 3, 4):
        x = np.moveaxis(x, -3, -1)
    x = x[..., None] if x.ndim == 2 else x
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] not in (1, 2, 3, 4) or x.size == 0:
        raise ValueError(f"{name} has shape {x.shape}; expected [H, W, 3] or [B, H, W, 3]")
    if x.dtype.kind == "f" and x.shape[-1] in (2, 4) and not x.min() >= 0:
        raise ValueError(f"{name} has an alpha channel and floats below 0; give floats in [0, 1]")
    return x


def _to_rgb(x: np.ndarray) -> np.ndarray:
    """Converts pixels at full scale to float32 [N, H, W, 3] in [-1, 1]."""
    x = on_white(x)
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255 * 2 - 1
    return np.broadcast_to(x, (*x.shape[:-1], 3)) if x.shape[-1] == 1 else x


def _mask(entry: Any, name: str) -> np.ndarray:
    """Reads a mask as float32 [N, H, W, 1] in [0, 1]."""
    if isinstance(entry, Image.Image):
        x, channels_first = _pillow_mask(entry, name), False
    else:
        x, channels_first = _array(entry, name)
    if channels_first and x.ndim == 4:
        x = np.moveaxis(x, 1, -1)
    has_channels = x.ndim == 4 or (not channels_first and x.ndim == 3 and x.shape[-1] <= 4)
    x = x if has_channels else x[..., None]
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] not in (1, 2, 3, 4) or x.size == 0:
        shape = x.shape if has_channels else x.shape[:-1]
        raise ValueError(f"{name} has shape {shape}; expected [H, W] or [B, H, W]")
    has_alpha = x.shape[-1] in (2, 4)
    colour = _unit(x[..., :-1] if has_alpha else x, name)
    grey = colour @ _LUMA[:, None] if colour.shape[-1] == 3 else colour
    return grey * _unit(x[..., -1:], name) if has_alpha else grey


def _unit(x: np.ndarray, name: str) -> np.ndarray:
    """Scales the values of a mask to float32 in [0, 1]."""
    low, high = x.min(), x.max()
    for white in (1, 255):
        if x.dtype.kind in "biuf" and np.isin(x, (0, white)).all():
            return x.astype(np.float32) / white
    if x.dtype == np.uint8:
        return x.astype(np.float32) / 255
    if x.dtype == np.uint16 and high > 255:
        return x.astype(np.float32) / 65535
    if x.dtype.kind == "f" and low >= 0 and high <= 1:
        return x.astype(np.float32)
    raise ValueError(
        f"{name} has type {x.dtype} and values from {low} to {high}; expected uint8 (0 to 255), "
        f"uint16, bool, floats in [0, 1], or only 0 and 1"
    )


def _native(x: np.ndarray) -> np.ndarray:
    """Converts an array to the byte order of this machine."""
    return x.astype(x.dtype.newbyteorder("="), copy=False)


def _array(entry: Any, name: str) -> tuple[np.ndarray, bool]:
    """Converts an array or tensor to NumPy, and says whether its kind has channels first."""
    is_tensor = hasattr(entry, "detach") and hasattr(entry, "cpu")
    try:
        if is_tensor:  # NumPy knows no bfloat16 of torch
            entry = entry.detach().cpu()
            entry = entry.float() if entry.is_floating_point() else entry
        x = np.asarray(entry)
        x = x.astype(np.float32) if x.dtype.name == "bfloat16" else _native(x)
    except Exception as error:  # whatever the conversion of a foreign type raises
        raise ValueError(f"{name} cannot be read as one array: {files.printable(error)}") from error
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name} has type {x.dtype}; expected {_RANGES}, Pillow pictures or paths")
    return x, is_tensor


def _pillow(image: Image.Image, mode: str, name: str) -> np.ndarray:
    """Converts a Pillow picture to uint8, upright; errors of Pillow name it."""
    try:
        is_deep = image.mode in pillow.DEEP_MODES  # 1 of 255 in a call is nearly black, as it says
        binary = is_deep and pillow.is_binary([pillow.range_of(image)], "it")
        return np.asarray(pillow.opaque(pillow.upright(image), mode, binary))
    except Exception as error:  # decoders raise SyntaxError, struct.error, OSError, ...
        raise ValueError(f"{name} cannot be used: {files.printable(error)}") from error


def _pillow_mask(image: Image.Image, name: str) -> np.ndarray:
    """Reads the values of a mask as they are stored: [H, W], or grey and alpha [H, W, 2]."""
    try:
        image = pillow.upright(image)
        if image.mode in ("1", "L", "F") or (image.mode == "I" and np.asarray(image).max() <= 255):
            return np.asarray(image)
        if image.mode in pillow.DEEP_MODES:
            return pillow.deep(image)
        if image.has_transparency_data:
            return np.asarray(pillow.with_alpha(image).convert("LA"))
        return np.asarray(image.convert("L"))
    except Exception as error:  # see _pillow
        raise ValueError(f"{name} cannot be used: {files.printable(error)}") from error
