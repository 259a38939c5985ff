# SPDX-License-Identifier: MIT
"""Reads the images and masks of a request as float arrays, and checks that they fit together."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen import fields
from jaxgen.data import pixels
from jaxgen.nn.stable_diffusion.autoencoder_tiny import Autoencoder
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.request import Request, is_whole

MOST_PIXELS = 2**26  # 8192 x 8192; a larger size is a typing error


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


def check_pair(
    image: np.ndarray | None,
    clean: np.ndarray | None,
    mask: np.ndarray | None,
    networks: Networks,
) -> None:
    """Raises ValueError unless image and mask are there as the model needs them, of one size.

    Hints at a mask that selects nothing.

    clean: latents in place of an image.
    """
    inpaints, f = networks.inpaints, networks.vae.factor
    if mask is None:
        if inpaints:
            raise ValueError("this is an inpainting model; give an image and a mask")
        return
    if image is None and clean is None:
        raise ValueError("a mask says which part of an image to make anew; give the image too")
    if image is None and inpaints:
        raise ValueError(
            "an inpainting model looks at the image outside of the mask, so latents do not do in "
            "its place; give the image, or with hires upscale='pixels'"
        )
    known = np.shape(image)[1:3] if clean is None else (clean.shape[1] * f, clean.shape[2] * f)
    if mask.shape[1:3] != known:
        raise ValueError(
            f"the mask has {mask.shape[1]} x {mask.shape[2]} pixels (height x width) and the image "
            f"{known[0]} x {known[1]}; they must be of one size"
        )
    if not mask.any(axis=(1, 2, 3)).all():
        warnings.warn(
            "a mask selects no pixel (white, true, half and above do), so that nothing of its "
            "image is made anew",
            stacklevel=2,
        )


def latents(value: Any, vae: Autoencoder, name: str = "latents") -> np.ndarray | None:
    """Checks latents or noise that the caller brings, float32 [N, h, w, C]."""
    if value is None:
        return None
    array = as_array(name, value)
    f, channels = vae.factor, vae.latent_channels
    numeric = jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "iu"
    with np.errstate(over="ignore"):  # what overflows is not finite either
        is_finite = numeric and np.isfinite(array.astype(np.float32)).all()
    if not is_finite:
        raise ValueError(f"{name} of type {array.dtype} hold values that are no finite numbers")
    if array.ndim != 4 or array.shape[-1] != channels or 0 in array.shape:
        raise ValueError(f"{name} have shape {array.shape}; expected [B, H/{f}, W/{f}, {channels}]")
    return array.astype(np.float32)


def size(
    request: Request,
    networks: Networks,
    image: np.ndarray | None,
    latents: np.ndarray | None,
    hint: np.ndarray | None,
) -> tuple[int, int]:
    """Chooses height and width in pixels: the caller's, his image's, or the model's own."""
    f, own = networks.vae.factor, networks.default_size
    if image is not None:
        own = image.shape[1:3]
    elif latents is not None:
        own = (latents.shape[1] * f, latents.shape[2] * f)
    elif hint is not None:
        own = hint.shape[1:3]
    if own is None and (request.height is None or request.width is None):
        raise ValueError("this model states no size of its own; give height and width in pixels")
    height, width = (
        default if value is None else value
        for value, default in zip((request.height, request.width), own or (0, 0), strict=True)
    )
    for name, value in (("height", height), ("width", width)):
        if not is_whole(value) or value <= 0 or value % f:
            raise ValueError(
                f"{name} is {fields.shown(value)}; it must be a positive multiple of {f} pixels"
            )
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"{fields.shown(height)} x {fields.shown(width)} pixels are too many; "
            f"at most {MOST_PIXELS}"
        )
    if image is not None and (height, width) != image.shape[1:3]:
        raise ValueError(
            f"the image has {image.shape[1]} x {image.shape[2]} pixels (height x width), but "
            f"height and width are {height} x {width}; resize it, or leave height and width out"
        )
    if hint is not None and (height, width) != hint.shape[1:3]:
        raise ValueError(
            f"the control image has {hint.shape[1]} x {hint.shape[2]} pixels (height x width), but "
            f"the picture will have {height} x {width}; resize it"
        )
    if latents is not None and latents.shape[1:3] != (height // f, width // f):
        raise ValueError(
            f"latents have shape {latents.shape}; expected [B, {height // f}, {width // f}, "
            f"{latents.shape[-1]}] for {height} x {width} pixels"
        )
    return int(height), int(width)
