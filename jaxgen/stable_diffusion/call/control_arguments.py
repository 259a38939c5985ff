# SPDX-License-Identifier: MIT
"""Checks what a call says of its ControlNets, and turns it into arrays."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen import fields
from jaxgen.data import pixels
from jaxgen.diffusion.table import Table
from jaxgen.nn.stable_diffusion.controlnet import ControlNetModel
from jaxgen.stable_diffusion import control
from jaxgen.stable_diffusion.request import Request, is_given, is_number


class ControlRequest(NamedTuple):
    """One ControlNet's image and weights; `control.Control` without its parameters."""

    image: np.ndarray  # float32 [N, H, W, 3] in [0, 1]
    scale: np.ndarray
    depths: np.ndarray
    of_negative: np.ndarray


def images(request: Request, count: int) -> list[np.ndarray]:
    """Reads the image of each of `count` ControlNets, float32 [N, H, W, 3] in [0, 1].

    Raises ValueError unless there is one for each, or none in a pipeline without any.
    """
    value = request.control_image
    if value is None:
        if count:
            raise ValueError(f"this pipeline has {count} ControlNets; give control_image")
        _check_unused(request)
        return []
    if not count:
        raise ValueError("control_image needs a ControlNet; load the pipeline with controlnet=")
    values = [value] if count == 1 else value
    if not isinstance(values, list | tuple) or len(values) != count:
        raise ValueError(f"control_image must be a list of {count}, one for each ControlNet")
    read = [
        (pixels.images(one, f"control image {k}") + 1) / 2 for k, one in enumerate(values, start=1)
    ]
    sizes = {image.shape[1:3] for image in read}
    if len(sizes) > 1:
        raise ValueError(f"control images have sizes {sorted(sizes)}; give all of one size")
    return read


def _check_unused(request: Request) -> None:
    """Raises ValueError for arguments of ControlNets in a pipeline without any."""
    names = ("control_scale", "control_start", "control_end", "guess_mode")
    given = [name for name in names if is_given(request, name)]
    if given:
        raise ValueError(
            f"{' and '.join(given)}: of ControlNets, and this pipeline has none; leave it out, or "
            "load the pipeline with controlnet="
        )


def requests(
    request: Request, nets: Sequence[ControlNetModel], read: list[np.ndarray], table: Table
) -> list[ControlRequest]:
    """Builds the weights of every ControlNet for the rows of a table."""
    count, result = len(nets), []
    if not isinstance(request.guess_mode, bool):
        raise ValueError(f"guess_mode is {fields.shown(request.guess_mode)}; use True or False")
    scales = _each("control_scale", request.control_scale, count, -math.inf, math.inf)
    starts = _each("control_start", request.control_start, count, 0, 1)
    ends = _each("control_end", request.control_end, count, 0, 1)
    first, last, rows = int(table.start_row), int(table.num_rows), len(table.t)
    for net, image, scale, start, end in zip(nets, read, scales, starts, ends, strict=True):
        if start >= end:
            raise ValueError(
                f"control_start is {start} and control_end {end}; it must be the larger"
            )
        alone = request.guess_mode or net.global_pool_conditions
        rising = request.guess_mode and not net.global_pool_conditions
        result.append(
            ControlRequest(
                image,
                control.window(scale, start, end, first, last, rows),
                control.depths(control.num_skips(net), rising),
                np.asarray(0 if alone else 1, np.float32),
            )
        )
    return result


def _each(name: str, value: Any, count: int, low: float, high: float) -> list[float]:
    """Gives each ControlNet its number."""
    numbers = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(numbers) != count or not all(is_number(x) for x in numbers):
        raise ValueError(
            f"{name} is {fields.shown(value)}; give a number, or one for each ControlNet"
        )
    if not all(low <= x <= high for x in numbers):
        raise ValueError(f"{name} is {fields.shown(value)}; it must lie between {low} and {high}")
    return [float(x) for x in numbers]
