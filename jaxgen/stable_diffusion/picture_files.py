# SPDX-License-Identifier: MIT
"""Reads the picture files that a command line names, fitted to one size in pixels; writes results.

A picture that is read is turned upright and cut to the shape that is asked for, at its middle.
Sizes are width and height; None is the picture's own, less what is no multiple of 8.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxgen.data import pixels
from jaxgen.pictures import edges, images, parameters
from jaxgen.stable_diffusion.call.image_arguments import MOST_PIXELS

Picture = Image.Image


def image_and_mask(
    image_path: Path, mask_path: Path | None, width: int | None, height: int | None
) -> tuple[Picture, Picture | None]:
    """Reads an image and its mask, if there is one. Raises ValueError unless both are of a size."""
    image = pixels.image_file(image_path)
    mask = None if mask_path is None else pixels.mask_file(mask_path)
    if mask is not None and mask.size != image.size:
        raise ValueError(
            f"{mask_path} has {mask.width} x {mask.height} pixels and {image_path} "
            f"{image.width} x {image.height}; they must be of one size"
        )
    size = _size(image, width, height)
    image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return image, mask and ImageOps.fit(mask, size, Image.Resampling.NEAREST)


def hints(
    paths: Sequence[Path], width: int | None, height: int | None, as_edges: bool
) -> list[Picture]:
    """Reads the pictures that ControlNets follow, in the first one's size, or their edges."""
    pictures = [pixels.image_file(path) for path in paths]
    size = _size(pictures[0], width, height)
    fitted = [ImageOps.fit(one, size, Image.Resampling.LANCZOS) for one in pictures]
    if as_edges:
        fitted = [Image.fromarray(edges.canny(np.asarray(one))) for one in fitted]
    return fitted


def save(
    folder: Path,
    pictures: np.ndarray,
    prompts: Sequence[str],
    seed: int,
    settings: Mapping[str, Any],
) -> Iterator[Path]:
    """Writes pictures [B, H, W, 3], with prompts and settings, and a grid of several; yields paths.

    Each prompt has the same number of pictures, of seeds that count up. Settings that are None are
    left out.
    """
    first, each = images.next_number(folder), len(pictures) // len(prompts)
    settings = {name: value for name, value in settings.items() if value is not None}
    for j, picture in enumerate(pictures):
        path = folder / f"{first + j:05d}.png"
        text = {"prompt": prompts[j // each], "seed": seed + j, **settings}
        images.save(path, picture, text | {parameters.KEY: parameters.text(text)})
        yield path
    if len(pictures) > 1:
        path = folder / f"{first:05d}-grid.png"
        text = {"prompt": "\n".join(prompts), "seed": seed, **settings}
        images.save(path, images.grid(pictures, each if each > 1 else None), text)
        yield path


def _size(picture: Picture, width: int | None, height: int | None) -> tuple[int, int]:
    width = picture.width // 8 * 8 or picture.width if width is None else width
    height = picture.height // 8 * 8 or picture.height if height is None else height
    if min(width, height) < 8:
        raise ValueError(f"{width} x {height} pixels are too few; use 8 at least")
    if width * height > MOST_PIXELS:  # before anything of this size is made
        raise ValueError(f"{width} x {height} pixels are too many; at most {MOST_PIXELS}")
    return width, height
