# SPDX-License-Identifier: MIT
"""Turns the sampler of a call and its options into the table of the run."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgen.diffusion import config, schedule
from jaxgen.diffusion.table import Table
from jaxgen.stable_diffusion.loading import Networks
from jaxgen.stable_diffusion.request import Request

# of samplers by name, with an example
OPTIONS = {"eta": 0.5, "spacing": "trailing", "levels": "karras"}


def table(
    request: Request, networks: Networks, scheduler: Mapping[str, Any], has_image: bool
) -> Table:
    """Builds the table from a sampler's name or a configured sampler; a Table stays.

    scheduler: the model's scheduler_config.json, where a name starts from.
    """
    sampler, num_steps = request.sampler, request.num_steps
    by_name = sampler is None or isinstance(sampler, str)
    _check_options(request, by_name)
    if isinstance(sampler, Table):
        return sampler
    if not _is_whole(num_steps) or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps!r:.80}; it must be a whole number, at least 1")
    if by_name:
        options = {name: getattr(request, name) for name in OPTIONS}
        pipeline = _pipeline(request, networks)
        sampler = config.from_config(scheduler, sampler, **options, pipeline=pipeline)
    elif not isinstance(sampler, Callable):
        raise ValueError(
            f"sampler is a {type(sampler).__name__}; give one of {', '.join(config.SAMPLERS)}, a "
            "function (num_steps, start_step) -> Table, or a Table"
        )
    return _called(sampler, num_steps, _skipped(request, has_image))


def _check_options(request: Request, by_name: bool) -> None:
    for name, example in OPTIONS.items():
        value = getattr(request, name)
        if value is not None and not by_name:
            raise ValueError(
                f"{name} is an option of samplers by name, and this sampler is configured "
                f"already; leave {name} out, or configure it with config.from_config"
            )
        if name != "eta" and not isinstance(value, str | None):
            raise ValueError(f"{name} is {value!r:.80}; it must be a string such as {example!r}")


def _pipeline(request: Request, networks: Networks) -> str:
    """Names the pipeline of diffusers whose corrections of old scheduler configs apply."""
    if networks.is_xl:
        return "StableDiffusionXLPipeline"
    kind = "Pipeline" if request.mask is None else "InpaintPipeline"
    return f"StableDiffusion{kind}"


def _skipped(request: Request, has_image: bool) -> int:
    """Counts the steps that an image leaves out."""
    num_steps, strength = request.num_steps, request.strength
    skipped = schedule.start_step(num_steps, strength) if has_image else 0
    if skipped >= num_steps and strength > 0:
        raise ValueError(
            f"strength {strength} of {num_steps} steps is no whole step, so the image "
            f"would not change; use at least {1 / num_steps:.3g}, or 0 to get the image back"
        )
    return skipped


def _called(sampler: Callable, num_steps: int, skipped: int) -> Table:
    try:
        inspect.signature(sampler).bind(int(num_steps), start_step=skipped)
    except (TypeError, ValueError):
        raise ValueError(
            f"sampler {sampler!r:.80} cannot be called as sampler(num_steps, start_step=0); give a "
            "function that can and returns a Table"
        ) from None
    result = sampler(int(num_steps), start_step=skipped)
    if not isinstance(result, Table):
        raise ValueError(f"the sampler returns a {type(result).__name__}; it must return a Table")
    return result


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
