# SPDX-License-Identifier: MIT
"""A sampler as data: one matrix per model evaluation.

For fixed steps every sampler here is a linear map. It carries a latent and a few memories (older
model outputs, saved latents); a row evaluates the model once and replaces them by combinations of

    latent, memory 0 ... memory 4, model output, fresh noise

The names below are the unit vectors of that basis. A sampler's update, written with them as the
paper writes it, evaluates to its own coefficients:

    x0 = (LATENT - sigma * OUTPUT) / alpha      # an array of 8 numbers
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgen.diffusion.sigmas import Grid

NUM_MEMORIES = 5  # PNDM needs all: three old outputs, a saved latent and a running sum
ROWS_STEP = 1024  # tables are padded to a multiple of this, so that the length never recompiles

_BASIS = np.eye(NUM_MEMORIES + 3)
LATENT, MEMORY, OUTPUT, NOISE = _BASIS[0], _BASIS[1:-2], _BASIS[-2], _BASIS[-1]
NOTHING = np.zeros(NUM_MEMORIES + 3)

CLEAN = (1.0, 0.0)  # noising of a latent that carries no noise


class Row(NamedTuple):
    """One model evaluation, at time t, of scale * latent; combinations are arrays [8]."""

    t: float
    scale: float
    noising: tuple[float, float]  # (a, b): the latent this row receives is a x_0 + b noise
    denoised: np.ndarray  # the estimate of x_0, from LATENT and OUTPUT
    latent: np.ndarray  # the next latent
    memory: Sequence[np.ndarray] = ()  # the next memories; absent ones become zero


class Table(NamedTuple):
    """All coefficients of one sampling run, float64 on the host, cast to float32 on the device.

    N rows, of which [start_row, num_rows) are run; the others are padding. A tuple of arrays, so it
    passes through jit as data and stacks under vmap.
    """

    t: np.ndarray  # [N] model time, fractional for some spacings
    scale: np.ndarray  # [N] the model sees scale * latent
    update: np.ndarray  # [N, 6, 8] next latent and memories, from these, model output and noise
    denoised: np.ndarray  # [N, 2] x_0 estimate = c[0] * latent + c[1] * output
    noising: np.ndarray  # [N + 1, 2] row i receives latents of the form c[0] * x_0 + c[1] * noise
    init_noise_sigma: np.ndarray  # [] scale of unit noise for a run from row 0
    start_row: np.ndarray  # int32 []
    num_rows: np.ndarray  # int32 []


def steps_from(start_step: int, grid: Grid) -> range:
    """The steps of a run that skips the first start_step of the grid's."""
    if not 0 <= start_step <= grid.num_steps:
        raise ValueError(f"start_step is {start_step}; it must lie between 0 and {grid.num_steps}")
    return range(start_step, grid.num_steps)


def check_descends(name: str, grid: Grid, start_step: int) -> None:
    """Raises ValueError where steps of a method with a history begin at one and the same level.

    So they do where a spacing reaches beyond the training times: the method divides by distances.
    """
    same = np.flatnonzero(np.diff(grid.sigma[start_step:-1]) >= 0)
    if same.size:
        i = start_step + int(same[0])
        raise ValueError(
            f"{name} looks back on earlier noise levels, and steps {i + 1} and {i + 2} of "
            f"{grid.num_steps} begin at the same one, {grid.sigma[i]:.4g}; use fewer steps, "
            "another spacing, or a sampler without a history such as euler"
        )


def assemble(
    name: str, rows: Sequence[Row], start_row: int = 0, init_noise_sigma: float = 1.0
) -> Table:
    """The padded table whose row start_row is rows[0].

    Raises ValueError where a coefficient is infinite or undefined.
    """
    num_rows = start_row + len(rows)
    size = ROWS_STEP * max(1, -(-num_rows // ROWS_STEP))
    here = slice(start_row, num_rows)
    table = Table(
        t=np.zeros(size),
        scale=np.ones(size),
        update=np.zeros((size, 1 + NUM_MEMORIES, 3 + NUM_MEMORIES)),
        denoised=np.zeros((size, 2)),
        noising=np.tile(CLEAN, (size + 1, 1)),
        init_noise_sigma=np.asarray(init_noise_sigma, np.float64),
        start_row=np.asarray(start_row, np.int32),
        num_rows=np.asarray(num_rows, np.int32),
    )
    if rows:
        table.t[here] = [row.t for row in rows]
        table.scale[here] = [row.scale for row in rows]
        table.noising[here] = [row.noising for row in rows]
        table.denoised[here] = [(row.denoised @ LATENT, row.denoised @ OUTPUT) for row in rows]
        table.update[here] = [_state(row) for row in rows]
    for column in (table.t, table.scale, table.update, table.denoised, table.noising):
        if not np.isfinite(column).all():
            raise ValueError(
                f"the coefficients of {name} are not finite with these options; choose another "
                "final sigma, another order at the end, or another prediction type"
            )
    return table


def _state(row: Row) -> np.ndarray:
    state = [row.latent, *row.memory]
    return np.stack(state + [NOTHING] * (1 + NUM_MEMORIES - len(state)))
