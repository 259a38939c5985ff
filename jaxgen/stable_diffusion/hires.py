# SPDX-License-Identifier: MIT
"""Two passes as one call: a small picture, made larger, from which the large one is drawn.

Models draw well in the size that they were trained in; larger pictures repeat their subject. The
second pass keeps the first one's layout and adds detail. Masks and what ControlNets follow are
enlarged with the picture.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxgen import fields
from jaxgen.diffusion import schedule
from jaxgen.diffusion.table import Table
from jaxgen.stable_diffusion.call import arguments, control_arguments, image_arguments
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.request import (
    Request,
    completed,
    is_number,
    is_whole,
    with_plain_numbers,
)

UPSCALE = ("latent", "pixels")


class Hires(NamedTuple):
    """Says how the second pass begins."""

    scale: float = 2.0  # of height and width
    strength: float = 0.6  # how much of the enlarged picture is made anew: 0 nothing, 1 all
    # latents between others are means of these; pixels are filtered (Lanczos)
    upscale: Literal["latent", "pixels"] = "latent"


def passes(
    request: Request, networks: Networks, scheduler: Mapping[str, Any]
) -> tuple[Request, Request]:
    """The two requests of a request with hires; the second begins with zeros for now.

    Raises ValueError for whatever is wrong with either, before the first is run.
    """
    request = with_plain_numbers(request)
    own = _checked(request)
    by_latent = own.upscale == "latent"
    first = replace(request, hires=None, output="latent" if by_latent else "image")
    batch = arguments.batch(first, networks, scheduler)
    f = networks.vae.factor
    height, width = (_pixels(own.scale, side) for side in batch.size)
    if height % f or width % f or min(height, width) <= 0:
        raise ValueError(
            f"hires makes {batch.size[0]} x {batch.size[1]} pixels {height:g} x {width:g}; both "
            f"must be multiples of {f}"
        )
    if height * width > image_arguments.MOST_PIXELS:  # before anything of this size is made
        raise ValueError(
            f"hires makes {height:g} x {width:g} pixels, which are too many; at most "
            f"{image_arguments.MOST_PIXELS}"
        )
    second = replace(
        request, hires=None, height=int(height), width=int(width), latents=None,
        strength=own.strength, image=None,
        mask=_larger_mask(request, (int(height), int(width))),
        control_image=_larger_hints(request, networks, (int(width), int(height))),
    )  # fmt: skip
    b, h, w, channels = len(batch.seeds), int(height), int(width), networks.vae.latent_channels
    if by_latent:
        zeros = np.zeros((b, h // f, w // f, channels), np.float32)
        second = replace(second, image_latents=zeros)
    else:
        second = replace(second, image_latents=None, image=np.zeros((b, h, w, 3), np.float32))
    arguments.batch(second, networks, scheduler)
    return first, second


def _pixels(scale: float, side: int) -> float:
    """A side times a factor; 1.1 times 400 is 440, where floats come to 440.00000000000006."""
    exact = scale * side
    return round(exact) if abs(exact - round(exact)) < 1e-6 else exact


def enlarged(second: Request, small: np.ndarray) -> Request:
    """The second request, with what the first one drew in the size that it begins with."""
    if second.image_latents is not None:
        shape = np.shape(second.image_latents)
        return replace(second, image_latents=jax.image.resize(small, shape, "linear"))
    size = (np.shape(second.image)[2], np.shape(second.image)[1])
    return replace(second, image=_larger(small, size))


def _larger(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges pictures uint8 [B, H, W, 3] to width and height."""
    large = [Image.fromarray(x).resize(size, Image.Resampling.LANCZOS) for x in pictures]
    return np.stack([np.asarray(picture) for picture in large])


def _larger_mask(request: Request, shape: tuple[int, int]) -> np.ndarray | None:
    """Enlarges the masks of a request to height and width, by the nearest pixel."""
    masks = image_arguments.mask(request.mask)
    if masks is None:
        return None
    rows, columns = (
        (np.arange(side) + 0.5) * own / side
        for side, own in zip(shape, masks.shape[1:3], strict=True)
    )
    return masks[:, rows.astype(int)][:, :, columns.astype(int)]


def _larger_hints(request: Request, networks: Networks, size: tuple[int, int]) -> Any:
    """Enlarges what ControlNets follow to width and height; for the shape that a request takes."""
    hints = control_arguments.images(request, len(networks.controlnets))
    large = [_larger(np.round(255 * hint).astype(np.uint8), size) for hint in hints]
    return large[0] if len(large) == 1 else (large or None)


def _checked(request: Request) -> Hires:
    own = request.hires
    own = Hires(own) if is_number(own) else own
    known = isinstance(own, Hires) and isinstance(own.upscale, str) and own.upscale in UPSCALE
    if not isinstance(own, Hires) or not known or not is_number(own.scale):
        raise ValueError(
            f"hires is {fields.shown(request.hires)}; give a factor such as 2, or Hires(scale, "
            f"strength, upscale) with upscale one of {', '.join(UPSCALE)}"
        )
    if not is_number(own.strength) or not 0 < own.strength <= 1:
        raise ValueError(
            f"the strength of hires is {fields.shown(own.strength)}; it must be above 0, to 1"
        )
    if isinstance(request.sampler, Table):
        raise ValueError(
            "hires begins its second pass in the middle of the run, and a Table has one begin; "
            "give the sampler's name, or a function (num_steps, start_step) -> Table"
        )
    num_steps = completed(request).num_steps
    if is_whole(num_steps) and 0 < num_steps <= schedule.start_step(num_steps, own.strength):
        raise ValueError(
            f"the strength of hires, {own.strength}, is no whole step of {num_steps}; use at least "
            f"{1 / num_steps:.3g}"
        )
    unfit = ("denoising_start", "denoising_end")
    both = [name for name in unfit if getattr(request, name) is not None]
    if both:
        raise ValueError(f"hires and {' and '.join(both)} cannot be combined; draw in two calls")
    return own
