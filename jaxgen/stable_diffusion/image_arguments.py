# SPDX-License-Identifier: MIT
"""Reads the images and masks of a request as float arrays, and checks that they fit together."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.data import pixels
from jaxgen.nn.autoencoder_kl import AutoencoderKL


def image(value: Any) -> np.ndarray | None:
    """Reads images as float32 [N, H, W, 3] in [-1, 1], of all kinds that data/pixels.py lists."""
    return None if value is None else pixels.images(value)


def mask(value: Any) -> np.ndarray | None:
    """Reads masks as zeros and ones, float32 [N, H, W, 1]; white, true, 0.5 and above are ones."""
    return None if value is None else pixels.masks(value)


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


def latents(value: Any, vae: AutoencoderKL) -> np.ndarray | None:
    """Checks the noise that the caller brings, float32 [N, h, w, C]."""
    if value is None:
        return None
    array = as_array("latents", value)
    f, channels = vae.factor, vae.latent_channels
    numeric = jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "iu"
    with np.errstate(over="ignore"):  # what overflows is not finite either
        is_finite = numeric and np.isfinite(array.astype(np.float32)).all()
    if not is_finite:
        raise ValueError(f"latents of type {array.dtype} hold values that are no finite numbers")
    if array.ndim != 4 or array.shape[-1] != channels or 0 in array.shape:
        raise ValueError(
            f"latents have shape {array.shape}; expected [B, H/{f}, W/{f}, {channels}]"
        )
    return array.astype(np.float32)
