# SPDX-License-Identifier: MIT
"""Turns the sampler of a call and its guidance into the table of the run and rows for it."""

import bisect
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgen import fields
from jaxgen.diffusion import config, schedule
from jaxgen.diffusion.table import Table
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.request import (
    Request,
    each,
    is_given,
    is_list,
    is_number,
    is_whole,
    numbers,
)

# of samplers by name, with an example
MOST_STEPS = 100_000
OPTIONS = {"eta": 0.5, "spacing": "trailing", "levels": "karras", "times": [999, 499]}


def table(
    request: Request, networks: Networks, scheduler: Mapping[str, Any], has_image: bool
) -> tuple[Table, int]:
    """Builds the table from a sampler's name or a configured sampler; a Table stays.

    scheduler: the model's scheduler_config.json, where a name starts from. The number of steps that
    are run comes with it: some samplers need several rows for one.
    """
    sampler, num_steps = request.sampler, request.num_steps
    by_name = sampler is None or isinstance(sampler, str)
    _check_options(request, by_name)
    if isinstance(sampler, Table):
        if request.denoising_start is not None or request.denoising_end is not None:
            raise ValueError("a Table says itself where it begins and ends; cut its rows instead")
        _check_beside_table(request, sampler, has_image)
        return sampler, int(sampler.num_rows) - int(sampler.start_row)
    if not is_whole(num_steps) or not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(
            f"num_steps is {fields.shown(num_steps)}; it must be a whole number, at least 1"
        )
    if by_name:
        options = {name: fields.plain(getattr(request, name)) for name in OPTIONS}
        pipeline = _pipeline(request, networks)
        sampler = config.from_config(scheduler, sampler, **options, pipeline=pipeline)
    elif not isinstance(sampler, Callable):
        raise ValueError(
            f"sampler is a {type(sampler).__name__}; give one of {', '.join(config.SAMPLERS)}, a "
            "function (num_steps, start_step) -> Table, or a Table"
        )
    first, last = _skipped(request, has_image), int(num_steps)
    train_steps = scheduler.get("num_train_timesteps", 1000)
    shares = (request.denoising_start, request.denoising_end)
    if str(scheduler.get("_class_name")).startswith("EDM") and shares != (None, None):
        raise ValueError("models of EDM have no training times that shares could be of")
    if request.denoising_start is not None:
        first = _first_step(sampler, num_steps, request.denoising_start, train_steps)
    if request.denoising_end is not None:
        last = _first_step(sampler, num_steps, request.denoising_end, train_steps)
    if first >= last and (first, last) != (num_steps, num_steps):
        raise ValueError("no step lies between these shares of the run; use more steps")
    return _cut(sampler, int(num_steps), first, last, request), last - first


def full_rows(request: Request, table: Table) -> np.ndarray | None:
    """Marks the rows that run the whole UNet, bool [N]: every cache_interval-th; None for all."""
    interval = request.cache_interval
    if not is_whole(interval) or interval < 1:
        raise ValueError(
            f"cache_interval is {fields.shown(interval)}; it must be a whole number, 1 (every "
            "evaluation of the model is whole) or more"
        )
    if interval == 1:
        return None
    full = np.zeros(len(table.t), bool)
    full[int(table.start_row) : int(table.num_rows) : interval] = True
    return full


def guidance_rows(request: Request, table: Table) -> dict[str, np.ndarray]:
    """Reads the scales of guidance where they are given for each row of the table.

    They are then a function of the table, or rows with a number for all images or for each one; by
    name, float32 [N, 1] or [N, B]. Raises ValueError unless there is a row for each evaluation.
    """
    limits = dict.fromkeys(("guidance_scale", "pag_scale"), (-math.inf, math.inf))
    limits["guidance_rescale"] = (0, 1)
    rows = {name: getattr(request, name) for name in limits}
    return {
        name: _rows(name, value, table, *limits[name])
        for name, value in rows.items()
        if callable(value) or _is_nested(value)
    }


def guidance(
    request: Request, columns: Mapping[str, np.ndarray], table: Table, b: int
) -> dict[str, Any]:
    """Brings the scales of guidance to float32 [N, B] for N rows, the rest of it to [B].

    columns: what `guidance_rows` returns.
    """
    ranges = {
        "guidance_scale": (-math.inf, math.inf),
        "guidance_rescale": (0, 1),
        "pag_scale": (-math.inf, math.inf),
    }
    of_rows: dict[str, Any] = {}
    for name, (low, high) in ranges.items():
        scales = columns.get(name)
        if scales is None:
            scales = numbers(name, getattr(request, name), b, low, high)
            if name == "guidance_scale":
                scales = np.maximum(scales, 1)  # diffusers: not guided at 1 and below
        of_rows[name] = np.broadcast_to(scales, (len(table.t), b))
    momentum = numbers("guidance_momentum", request.guidance_momentum, b, -1, 1)
    run = of_rows["pag_scale"][int(table.start_row) : int(table.num_rows)]
    return of_rows | {
        "pag_scale": of_rows["pag_scale"] if run.any() else None,
        "guidance_parallel": numbers("guidance_parallel", request.guidance_parallel, b, 0, 1),
        "guidance_limit": _limits(request.guidance_limit, b),
        "guidance_momentum": momentum if momentum.any() else None,
    }


def _rows(name: str, value: Any, table: Table, low: float, high: float) -> np.ndarray:
    named = name
    if callable(value):
        named, value = f"what {name} returns", _result(name, value, table)
    try:
        with np.errstate(over="ignore"):  # what overflows is not finite either
            rows = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        rows = np.zeros((0, 0))
    start, end = int(table.start_row), int(table.num_rows)
    if rows.ndim != 2 or rows.shape[1] == 0 or len(rows) != end - start:
        raise ValueError(
            f"{named} is {fields.shown(value)} of shape {rows.shape}; expected "
            f"[{end - start}, images], a row for each evaluation of the model in this run, with "
            "one number for all images or one for each"
        )
    if not np.isfinite(rows).all() or (rows < low).any() or (rows > high).any():
        expected = "be finite" if math.isinf(low) else f"lie between {low} and {high}"
        raise ValueError(f"{named} is {fields.shown(value)}; all its numbers must {expected}")
    result = np.ones((len(table.t), rows.shape[1]), np.float32)  # also where nothing is run
    result[start:end] = rows
    return result


def _result(name: str, function: Callable, table: Table) -> Any:
    try:
        return function(table)
    except TypeError as error:
        raise ValueError(
            f"{name} is {fields.shown(function)}, which cannot be called with the Table of the run"
        ) from error


def _is_nested(value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return isinstance(value[0], list | tuple) or _num_axes(value[0]) > 0
    return _num_axes(value) > 1


def _num_axes(value: Any) -> int:
    axes = getattr(value, "ndim", 0)
    return axes if isinstance(axes, int) else 0  # some things have a function of that name


def _limits(value: Any, b: int) -> np.ndarray:
    """Gives each image the largest norm of its guidance, float32 [B]; None is infinite."""
    limits = [math.inf if _is_infinite(limit) else limit for limit in each(value, b)]
    if not all(limit is math.inf or (is_number(limit) and limit > 0) for limit in limits):
        raise ValueError(
            f"guidance_limit is {fields.shown(value)}; it must be positive, or None for none"
        )
    return np.asarray(limits, np.float32)


def _is_infinite(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value == math.inf)


def _check_beside_table(request: Request, table: Table, has_image: bool) -> None:
    """Raises ValueError for what a Table leaves no room for; a strength of 1 leaves out no step."""
    if request.num_steps is not None:
        raise ValueError(
            f"num_steps is {fields.shown(request.num_steps)}, and the sampler is a Table, which "
            f"has its own, of {int(table.num_rows)} evaluations; leave num_steps out"
        )
    if has_image and is_given(request, "strength") and request.strength != 1:
        raise ValueError(
            f"strength is {request.strength}, and the sampler is a Table, which says itself where "
            "it begins; build it with start_step, and leave strength out"
        )


def _check_options(request: Request, by_name: bool) -> None:
    for name, example in OPTIONS.items():
        value = getattr(request, name)
        if name == "times" and is_list(value) and not len(value):
            raise ValueError("times is an empty list; give the training time of each step")
        if value is not None and not by_name:
            raise ValueError(
                f"{name} is an option of samplers by name, and this sampler is configured "
                f"already; leave {name} out, or configure it with config.from_config"
            )
        fits = is_list(value) if isinstance(example, list) else isinstance(value, str)
        if name != "eta" and value is not None and not fits:
            kind = "list" if isinstance(example, list) else "string"
            raise ValueError(
                f"{name} is {fields.shown(value)}; it must be a {kind} such as {example!r}"
            )


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


def _first_step(sampler: Callable, num_steps: int, share: float, train_steps: int) -> int:
    """Finds the first step of a run whose time lies beyond this share of the training times.

    By time, not by number, so that two models with grids of their own meet, as in diffusers.
    """
    rows, cutoff = int(_called(sampler, num_steps, 0).num_rows), round(train_steps * (1 - share))
    if rows not in (num_steps, 2 * num_steps - 1, 2 * num_steps):
        raise ValueError(
            f"this sampler takes {rows} evaluations for {num_steps} steps, and no share of them is "
            "a whole number of steps; hand over with another one, such as euler"
        )

    def is_beyond(step: int) -> bool:
        begun = _called(sampler, num_steps, step)
        return bool(begun.t[begun.start_row] < cutoff)

    return bisect.bisect_left(range(num_steps), True, key=is_beyond)


def _cut(sampler: Callable, num_steps: int, first: int, last: int, request: Request) -> Table:
    """Builds the table of steps first to last - 1, which gets and leaves noisy latents."""
    result = _called(sampler, num_steps, first)
    if request.denoising_start is not None:  # the latents are given as they are
        result = result._replace(init_noise_sigma=np.ones(()))
    if last == num_steps:
        return result
    return result._replace(num_rows=_called(sampler, num_steps, last).start_row)


def _called(sampler: Callable, num_steps: int, skipped: int) -> Table:
    try:
        inspect.signature(sampler).bind(int(num_steps), start_step=skipped)
    except (TypeError, ValueError):
        raise ValueError(
            f"sampler {fields.shown(sampler)} cannot be called as "
            "sampler(num_steps, start_step=0); give a function that can and returns a Table"
        ) from None
    result = sampler(int(num_steps), start_step=skipped)
    if not isinstance(result, Table):
        raise ValueError(f"the sampler returns a {type(result).__name__}; it must return a Table")
    return result
