# SPDX-License-Identifier: MIT
"""One call of the pipeline: what the caller asks for, checked and brought into arrays.

Everything here is NumPy on the host, so that a bad request fails before any long work.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxgen.diffusion import config, schedule
from jaxgen.diffusion.table import Table
from jaxgen.stable_diffusion.loading import Networks
from jaxgen.stable_diffusion.text_encoding import Text

OUTPUTS = ("image", "latent")
MOST_PIXELS = 2**26  # 8192 x 8192; beyond, a size is a slip of the keyboard


class Model(NamedTuple):
    """What a request must know of the model."""

    factor: int  # picture pixels per latent pixel
    channels: int  # of a latent
    default_size: tuple[int, int] | None  # height and width in pixels
    inpaints: bool  # its UNet takes a mask and a masked image
    scheduler: Mapping[str, Any]  # scheduler_config.json


@dataclass(frozen=True)
class Request:
    """The arguments of `StableDiffusion.__call__`, which documents them."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str | None] | None = None
    num_steps: int = 50
    guidance_scale: float | Sequence[float] = 7.5
    sampler: Any = None
    seed: int | Sequence[int] = 0
    height: int | None = None
    width: int | None = None
    image: Any = None
    strength: float = 0.8
    mask: Any = None
    latents: Any = None
    output: str = "image"
    guidance_rescale: float | Sequence[float] = 0.0
    eta: float | None = None
    clip_skip: int = 0
    weighting: bool = True
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    prompt_embeds: Text | None = None
    negative_prompt_embeds: Text | None = None


class Settings(NamedTuple):
    """A request in arrays: a batch of B images of height H and width W."""

    prompts: list[str] | None  # None where embeddings are given
    negatives: list[str | None]
    guidance_scale: np.ndarray  # float32 [B], at least 1
    guidance_rescale: np.ndarray  # float32 [B]
    seeds: np.ndarray  # uint32 [B]
    size: tuple[int, int]  # H, W
    table: Table
    image: np.ndarray | None  # float32 [B, H, W, 3] in [-1, 1]
    mask: np.ndarray | None  # float32 [B, H, W, 1], 1 where the picture is made anew
    latents: np.ndarray | None  # float32 [B, H/f, W/f, C]
    from_image: bool  # begin with the noised image

    @property
    def guided(self) -> bool:
        return bool((self.guidance_scale > 1).any())


def model(networks: Networks, scheduler: Mapping[str, Any]) -> Model:
    """What a request must know of these networks."""
    factor = 2 ** (len(networks.vae.block_out_channels) - 1)
    channels, size = networks.vae.latent_channels, networks.unet.sample_size
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        size = (height * factor, width * factor)
    return Model(factor, channels, size, networks.unet.in_channels != channels, scheduler)


def settings(request: Request, model: Model) -> Settings:
    """The request in arrays. Raises one ValueError that says what is wrong with it."""
    if request.output not in OUTPUTS:
        raise ValueError(f"output is {request.output!r}; use one of {', '.join(OUTPUTS)}")
    if not 0 <= request.strength <= 1:
        raise ValueError(f"strength is {request.strength}; it must lie between 0 and 1")
    image, mask, latents = _picture(request.image), _mask(request.mask), request.latents
    _check_pair(image, mask, model)
    latents = None if latents is None else np.asarray(latents, np.float32)
    size = _size(request, model, image, latents)
    table = _table(request, model, image is not None)
    b = _batch_size(request, image, mask, latents)
    seeds = _each("seed", request.seed, 1 if np.ndim(request.seed) == 0 else b)
    if len(seeds) != b:
        seeds = [seeds[0] + j for j in range(b)]
    scale = _numbers("guidance_scale", request.guidance_scale, b, -math.inf, math.inf)
    return Settings(
        prompts=None if request.prompt is None else _each("prompt", request.prompt, b),
        negatives=_each("negative_prompt", request.negative_prompt, b),
        guidance_scale=np.maximum(scale, 1),  # diffusers: not guided at 1 and below
        guidance_rescale=_numbers("guidance_rescale", request.guidance_rescale, b, 0, 1),
        seeds=_seeds(seeds),
        size=size,
        table=table,
        image=_rows("image", image, b),
        mask=_rows("mask", mask, b),
        latents=_rows("latents", latents, b),
        from_image=image is not None and (mask is None or request.strength < 1),
    )


def _table(request: Request, model: Model, has_image: bool) -> Table:
    """The sampler's table, from a name, a configured sampler, or a table that is one already."""
    sampler, num_steps = request.sampler, request.num_steps
    if isinstance(sampler, Table):
        return sampler
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps!r}; it must be a whole number, at least 1")
    if sampler is None or isinstance(sampler, str):
        sampler = config.from_config(model.scheduler, sampler, request.eta)
    elif not isinstance(sampler, Callable):
        raise ValueError(
            f"sampler is a {type(sampler).__name__}; give one of {', '.join(config.SAMPLERS)}, a "
            "function (num_steps, start_step) -> Table, or a Table"
        )
    skipped = schedule.start_step(num_steps, request.strength) if has_image else 0
    return sampler(int(num_steps), start_step=skipped)


def _size(
    request: Request, model: Model, image: np.ndarray | None, latents: np.ndarray | None
) -> tuple[int, int]:
    f, found = model.factor, model.default_size
    if latents is not None and (latents.ndim != 4 or latents.shape[-1] != model.channels):
        raise ValueError(
            f"latents have shape {latents.shape}; expected [B, H/{f}, W/{f}, {model.channels}]"
        )
    if image is not None:
        found = image.shape[1:3]
    elif latents is not None:
        found = (latents.shape[1] * f, latents.shape[2] * f)
    if found is None and (request.height is None or request.width is None):
        raise ValueError("this model states no size of its own; give height and width in pixels")
    found = found or (0, 0)
    size = (
        found[0] if request.height is None else request.height,
        found[1] if request.width is None else request.width,
    )
    for name, value in zip(("height", "width"), size, strict=True):
        if not isinstance(value, int | np.integer) or value <= 0 or value % f:
            raise ValueError(f"{name} is {value!r}; it must be a positive multiple of {f} pixels")
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} pixels are too many; at most {MOST_PIXELS}")
    if image is not None and size != image.shape[1:3]:
        raise ValueError(
            f"the image has {image.shape[1]} x {image.shape[2]} pixels (height x width), but "
            f"{size[0]} x {size[1]} are asked for; resize it, or leave height and width out"
        )
    if latents is not None and latents.shape[1:3] != (size[0] // f, size[1] // f):
        raise ValueError(
            f"latents have shape {latents.shape}; expected [B, {size[0] // f}, {size[1] // f}, "
            f"{model.channels}] for {size[0]} x {size[1]} pixels"
        )
    return int(size[0]), int(size[1])


def _batch_size(request: Request, *arrays: np.ndarray | None) -> int:
    """The common length of everything that is given per image; single values serve all."""
    names = ("prompt", "negative_prompt", "guidance_scale", "guidance_rescale", "seed")
    lengths = {
        name: len(getattr(request, name)) for name in names if _is_list(getattr(request, name))
    }
    for name, text in (
        ("prompt_embeds", request.prompt_embeds),
        ("negative_prompt_embeds", request.negative_prompt_embeds),
    ):
        if text is not None:
            lengths[name] = len(text.context)
    for name, array in zip(("image", "mask", "latents"), arrays, strict=True):
        if array is not None:
            lengths[name] = len(array)
    if request.prompt is None and request.prompt_embeds is None:
        raise ValueError("give a prompt (a string or a list of strings), or prompt_embeds")
    empty = [name for name, length in lengths.items() if length == 0]
    if empty:
        raise ValueError(f"{empty[0]} is an empty list; give at least one entry")
    b = max(lengths.values(), default=1)
    wrong = [f"{name} has {length}" for name, length in lengths.items() if length not in (1, b)]
    if wrong:
        raise ValueError(
            f"the batch has {b} images, but {', '.join(wrong)}; give one for each image or one "
            "for all"
        )
    return b


def _is_list(value: Any) -> bool:
    return not isinstance(value, str) and np.ndim(value) == 1 and hasattr(value, "__len__")


def _each(name: str, value: Any, b: int) -> list:
    """A value given once or per image, as a list of b."""
    values = list(value) if _is_list(value) else [value]
    texts = name in ("prompt", "negative_prompt")
    for entry in values:
        missing = entry is None and name == "negative_prompt"
        if texts and not missing and not isinstance(entry, str):
            raise ValueError(f"{name} holds {entry!r:.80}; expected a string")
    return values * b if len(values) == 1 else values


def _numbers(name: str, value: Any, b: int, low: float, high: float) -> np.ndarray:
    numbers = np.asarray(_each(name, value, b), np.float32)
    if not np.isfinite(numbers).all() or (numbers < low).any() or (numbers > high).any():
        wanted = "finite" if math.isinf(low) else f"between {low} and {high}"
        raise ValueError(f"{name} is {value}; it must be {wanted}")
    return numbers


def _seeds(seeds: Sequence[int]) -> np.ndarray:
    for seed in seeds:
        whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        if not whole or not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed!r}; it must be a whole number from 0 to 2**32 - 1")
    return np.asarray(seeds, np.uint32)


def _rows(name: str, array: np.ndarray | None, b: int) -> np.ndarray | None:
    return None if array is None else np.repeat(array, b // len(array), axis=0)


def _check_pair(image: np.ndarray | None, mask: np.ndarray | None, model: Model) -> None:
    if mask is None:
        if model.inpaints:
            raise ValueError("this is an inpainting model; give an image and a mask")
        return
    if image is None:
        raise ValueError("a mask says which part of an image to make anew; give the image too")
    if mask.shape[1:3] != image.shape[1:3]:
        raise ValueError(
            f"the mask has {mask.shape[1]} x {mask.shape[2]} pixels (height x width) and the image "
            f"{image.shape[1]} x {image.shape[2]}; they must be of one size"
        )


def _picture(image: Any) -> np.ndarray | None:
    """Pictures as float32 [N, H, W, 3] in [-1, 1], from Pillow images or arrays, one or many."""
    if image is None:
        return None
    images = image if isinstance(image, list | tuple) else [image]
    arrays = [np.asarray(_converted(entry, "RGB")) for entry in images]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError("the images differ in size; give images of one size in a batch")
    x = arrays[0] if len(arrays) == 1 else np.stack(arrays)
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] != 3:
        raise ValueError(f"the image has shape {x.shape}; expected [H, W, 3] or [B, H, W, 3]")
    if x.dtype == np.uint8:
        return x.astype(np.float32) / 255 * 2 - 1
    if not np.issubdtype(x.dtype, np.floating) or not (np.abs(x) <= 1).all():
        raise ValueError(
            f"the image has type {x.dtype}; expected uint8 (0 to 255), or floats from -1 to 1"
        )
    return x.astype(np.float32)


def _mask(mask: Any) -> np.ndarray | None:
    """Masks as float32 [N, H, W, 1] of zeros and ones; white, true and 0.5 and above are ones."""
    if mask is None:
        return None
    masks = mask if isinstance(mask, list | tuple) else [mask]
    arrays = [np.asarray(_converted(entry, "L")) for entry in masks]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError("the masks differ in size; give masks of one size in a batch")
    x = arrays[0] if len(arrays) == 1 else np.stack(arrays)
    x = x[..., 0] if x.ndim > 2 and x.shape[-1] == 1 else x
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3:
        raise ValueError(f"the mask has shape {x.shape}; expected [H, W] or [B, H, W]")
    x = x / 255 if x.dtype == np.uint8 else x
    return (x >= 0.5).astype(np.float32)[..., None]


def _converted(image: Any, mode: str) -> Any:
    """Pillow images in the wanted mode; everything else as it is."""
    return image.convert(mode) if hasattr(image, "convert") else image
