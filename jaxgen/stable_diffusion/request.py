# SPDX-License-Identifier: MIT
"""Holds one call of the pipeline: as the caller writes it, and in arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxgen import fields
from jaxgen.diffusion.table import Table
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.stable_diffusion.texts.phases import Phases


@dataclass(frozen=True)
class Request:
    """Holds the arguments of `StableDiffusion.__call__`, which documents them."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str | None] | None = None
    num_steps: Any = None
    guidance_scale: Any = None
    sampler: Any = None
    seed: int | Sequence[int] = 0
    height: int | None = None
    width: int | None = None
    image: Any = None
    strength: float = 0.8
    mask: Any = None
    latents: Any = None
    output: str = "image"
    guidance_rescale: Any = 0.0
    guidance_parallel: float | Sequence[float] = 1.0
    guidance_limit: float | Sequence[float | None] | None = None
    spacing: str | None = None
    levels: str | None = None
    eta: float | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    clip_skip: int = 0
    weighting: bool = True
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    prompt_embeds: Text | None = None
    negative_prompt_embeds: Text | None = None
    control_image: Any = None
    control_scale: float | Sequence[float] = 1.0
    control_start: float | Sequence[float] = 0.0
    control_end: float | Sequence[float] = 1.0
    guess_mode: bool = False
    image_latents: Any = None
    hires: Any = None


def completed(request: Request, num_steps: int = 50, guidance_scale: float = 7.5) -> Request:
    """Returns the request with these in place of a None."""
    own = {"num_steps": num_steps, "guidance_scale": guidance_scale}
    missing: dict[str, Any] = {
        name: value for name, value in own.items() if getattr(request, name) is None
    }
    return replace(request, **missing) if missing else request


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
    seeds: np.ndarray  # uint32 [B]
    size: tuple[int, int]  # H, W
    time_ids: np.ndarray | None  # float32 [B, 6] of XL, [B, S, 5] of its refiner
    table: Table
    image: np.ndarray | None  # float32 [B, H, W, 3] in [-1, 1]
    mask: np.ndarray | None  # float32 [B, H, W, 1], 1 where the picture is made anew
    latents: np.ndarray | None  # float32 [B, H/f, W/f, C], unit noise
    clean: np.ndarray | None  # float32 [B, H/f, W/f, C], given in place of an image
    from_image: bool  # begin with the noised image, not with pure noise
    controls: list[Any]  # a `control_arguments.ControlRequest` for each ControlNet


_LARGEST = float(np.finfo(np.float32).max)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that float32 holds."""
    return fields.is_number(value) and abs(value) <= _LARGEST  # false for NaN, too


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
