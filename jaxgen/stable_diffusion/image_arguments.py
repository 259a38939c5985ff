# SPDX-License-Identifier: MIT
"""Reads the images and masks of a request as float arrays, from Pillow images or arrays."""

from typing import Any

import numpy as np


def image(value: Any) -> np.ndarray | None:
    """Reads images as float32 [N, H, W, 3] in [-1, 1], from Pillow, uint8, or floats in [-1, 1]."""
    if value is None:
        return None
    x = _stack("image", value, "RGB")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"the image has type {x.dtype}; expected uint8 (0 to 255), floats from -1 to 1, or "
            "Pillow images"
        )
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] != 3 or 0 in x.shape:
        raise ValueError(f"the image has shape {x.shape}; expected [H, W, 3] or [B, H, W, 3]")
    if x.dtype == np.uint8:
        return x.astype(np.float32) / 255 * 2 - 1
    if not (np.abs(x) <= 1).all():
        raise ValueError("the image has values outside of -1 to 1; scale it, or give uint8")
    return x.astype(np.float32)


def mask(value: Any) -> np.ndarray | None:
    """Reads masks as zeros and ones, float32 [N, H, W, 1]; white, true, 0.5 and above are ones."""
    if value is None:
        return None
    x = _stack("mask", value, "L")
    if x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise ValueError(
            f"the mask has type {x.dtype}; expected booleans, uint8 (0 to 255), finite floats from "
            "0 to 1, or Pillow images"
        )
    x = x[..., 0] if x.ndim > 2 and x.shape[-1] == 1 else x
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"the mask has shape {x.shape}; expected [H, W] or [B, H, W]")
    x = x / 255 if x.dtype == np.uint8 else x
    return (x >= 0.5).astype(np.float32)[..., None]


def as_array(name: str, value: Any) -> np.ndarray:
    """Converts a value to an array; raises ValueError with its name where NumPy cannot."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as one array: {error!s:.200}") from None


def check_pair(image: np.ndarray | None, mask: np.ndarray | None, inpaints: bool) -> None:
    """Raises ValueError unless image and mask are there as the model needs them, of one size."""
    if mask is None:
        if inpaints:
            raise ValueError("this is an inpainting model; give an image and a mask")
        return
    if image is None:
        raise ValueError("a mask says which part of an image to make anew; give the image too")
    if mask.shape[1:3] != image.shape[1:3]:
        raise ValueError(
            f"the mask has {mask.shape[1]} x {mask.shape[2]} pixels (height x width) and the image "
            f"{image.shape[1]} x {image.shape[2]}; they must be of one size"
        )


def _stack(name: str, value: Any, mode: str) -> np.ndarray:
    """Stacks the entries of a list; Pillow images are converted to `mode`. One entry stays."""
    entries = value if isinstance(value, list | tuple) else [value]
    if not entries:
        raise ValueError(f"{name} is an empty list; give at least one entry")
    arrays = [
        as_array(name, entry.convert(mode) if hasattr(entry, "convert") else entry)
        for entry in entries
    ]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"the {name}s differ in size; give {name}s of one size in a batch")
    return arrays[0] if len(arrays) == 1 else np.stack(arrays)
