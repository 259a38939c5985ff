# SPDX-License-Identifier: MIT
"""Holds one call of the pipeline: as the caller writes it, and in arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxgen import fields
from jaxgen.diffusion.table import Table
from jaxgen.nn.stable_diffusion.perturbed import Layers
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.stable_diffusion.texts.phases import Phases


@dataclass(frozen=True)
class Request:
    """Holds the arguments of a call of `StableDiffusion`, for B images.

    Lists of B may hold one entry; what is one value serves all images.
    """

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str | None] | None = None
    num_steps: Any = None  # None: 50, or what a distilled model needs
    # 1 or less is no guidance; where that holds for all images, the half of the work that guidance
    # costs is left out. None: 7.5, or what a distilled model needs. Rows, one for each evaluation
    # of the model, of one number or one for each image, or a function of the table that returns
    # them (see diffusion/guidance.py), are taken as they are.
    guidance_scale: Any = None
    # a name ("dpmpp_2m_karras", "DPM++ 2M Karras", "euler_a"), a function (num_steps, start_step)
    # -> Table, or a Table; None is the checkpoint's own
    sampler: Any = None
    seed: int | Sequence[int] = 0  # of a single one, image j takes seed + j
    height: int | None = None  # pixels; the image's or the model's own by default
    width: int | None = None
    image: Any = None  # Pillow, paths, arrays or tensors (data/pixels.py lists what is taken)
    strength: float = 0.8  # the share of the steps that are run from the image
    mask: Any = None  # what is white is made anew
    latents: Any = None  # unit noise that replaces the seeds' own
    output: str = "image"  # or "latent"
    guidance_rescale: Any = 0.0  # 0 to 1; or rows, as guidance_scale
    guidance_parallel: float | Sequence[float] = 1.0  # 0 to 1; adaptive projected guidance
    guidance_limit: float | Sequence[float | None] | None = None  # the same
    guidance_momentum: float | Sequence[float] = 0.0  # the same; -1 to 1, usual are negative ones
    # perturbed attention guidance, 0 is none, usual is 3; or rows, as guidance_scale
    pag_scale: Any = 0.0
    # whose self-attention it leaves out: "down", "mid", "up", or beginnings of modules' names
    pag_layers: str | Sequence[str] = "mid"
    # of samplers by name, from the checkpoint's own schedule: "leading", "linspace", "trailing"
    spacing: str | None = None
    # the same: "karras", "exponential", "beta", or "schedule" for those of training
    levels: str | None = None
    # the same: the training times of the steps, falling, in place of num_steps and spacing
    times: Sequence[int] | None = None
    eta: float | None = None  # the fresh noise of ddim (0 by default) and tcd (0.3)
    # shares of the training times where one call goes on, and stops, with its latents as they are
    denoising_start: float | None = None
    denoising_end: float | None = None
    clip_skip: int = 0  # last text layers left out, for the prompt only, as in diffusers
    weighting: bool = True  # False reads brackets in prompts as text (see texts/prompts.py)
    original_size: tuple[int, int] | None = None  # of XL: height, width
    crop: tuple[int, int] = (0, 0)  # of XL: top, left
    target_size: tuple[int, int] | None = None  # of XL: height, width
    prompt_embeds: Text | None = None  # what `embed` returns
    negative_prompt_embeds: Text | None = None
    control_image: Any = None  # as image, of the picture's size; a list, one for each ControlNet
    control_scale: float | Sequence[float] = 1.0  # weighs what a ControlNet adds
    control_start: float | Sequence[float] = 0.0  # it acts between these shares of the steps
    control_end: float | Sequence[float] = 1.0
    guess_mode: bool = False  # only the positive text's half takes it, deep layers most
    image_latents: Any = None  # what output="latent" gave, in place of an image
    # draws a small picture first, makes it so many times larger, and draws from that; or a `Hires`
    hires: Any = None
    # DeepCache: every so many evaluations of the model are whole, the others take the features of
    # all levels but the outermost again
    cache_interval: int = 1


def completed(request: Request, num_steps: int = 50, guidance_scale: float = 7.5) -> Request:
    """Returns the request with these in place of a None; times say how many steps there are.

    A Table has rows of its own, and no number of steps is put beside it.
    """
    if request.times is not None and is_list(request.times) and len(request.times):
        num_steps = len(request.times)
    own: dict[str, Any] = {"num_steps": num_steps, "guidance_scale": guidance_scale}
    if isinstance(request.sampler, Table):
        del own["num_steps"]
    missing: dict[str, Any] = {
        name: value for name, value in own.items() if getattr(request, name) is None
    }
    return replace(request, **missing) if missing else request


def with_plain_numbers(request: Request) -> Request:
    """Returns the request with Python's numbers in place of NumPy's and JAX's single ones."""
    return replace(request, **{name: fields.plain(value) for name, value in vars(request).items()})


def is_given(request: Request, name: str) -> bool:
    """Whether an argument differs from its default, which is a number, True or False, or a text."""
    value = getattr(request, name)
    is_plain = isinstance(value, bool | int | float | str)  # others may not compare
    return not (is_plain and value == getattr(Request, name))


class BatchRequest(NamedTuple):
    """Asks for B images of height H and width W; `arguments.batch` has checked it."""

    phases: Phases  # the texts, step by step
    prompt_embeds: Text | None
    negative_prompt_embeds: Text | None
    clip_skip: int
    weighting: bool
    guided: bool  # by negative texts; all G - 1 others are positive
    guidance_scale: np.ndarray  # float32 [N, B], for the N rows of the table
    guidance_rescale: np.ndarray  # float32 [N, B]
    guidance_parallel: np.ndarray  # float32 [B]
    guidance_limit: np.ndarray  # float32 [B], infinite for none
    guidance_momentum: np.ndarray | None  # float32 [B]; None: 0 for all
    pag_scale: np.ndarray | None  # float32 [N, B]; None: 0 for all
    pag_layers: Layers | None  # where `pag_scale` is not None
    seeds: np.ndarray  # uint32 [B]
    size: tuple[int, int]  # H, W
    time_ids: np.ndarray | None  # float32 [B, 6] of XL, [B, S, 5] of its refiner
    table: Table
    image: np.ndarray | None  # float32 [B, H, W, 3] in [-1, 1]
    mask: np.ndarray | None  # float32 [B, H, W, 1], 1 where the picture is made anew
    latents: np.ndarray | None  # float32 [B, H/f, W/f, C], unit noise
    clean: np.ndarray | None  # float32 [B, H/f, W/f, C], given in place of an image
    from_image: bool  # begin with the noised image, not with pure noise
    full: np.ndarray | None  # bool [N], rows that run the whole UNet; None: all
    controls: list[Any]  # a `control_arguments.ControlRequest` for each ControlNet


_LARGEST = float(np.finfo(np.float32).max)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that float32 holds."""
    return fields.is_number(value) and abs(value) <= _LARGEST  # false for NaN, too


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_list(value: Any) -> bool:
    """Whether a value has entries of its own for the images of a batch."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1


def each(value: Any, b: int) -> list:
    """Repeats a single value for b images; a list stays. Arrays become Python's numbers."""
    entries = fields.plain(list(value)) if is_list(value) else [value]
    return entries * b if len(entries) == 1 else entries


def numbers(name: str, value: Any, b: int, low: float, high: float) -> np.ndarray:
    """Gives each image its number, float32 [B]."""
    values = each(value, b)
    if not all(is_number(number) and low <= number <= high for number in values):
        expected = "finite" if math.isinf(low) else f"between {low} and {high}"
        raise ValueError(f"{name} is {fields.shown(value)}; it must be {expected}")
    return np.asarray(values, np.float32)
