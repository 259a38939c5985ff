# SPDX-License-Identifier: MIT
"""Guidance scales that change during a run: one for each row of a sampler's table, as data.

Every function here returns a function of the table, which gives [R, 1] for the R rows that are run:
what `guidance_scale` of a pipeline takes beside numbers. A scale of 1 is no guidance, 0 follows the
negative text alone.
"""

from collections.abc import Callable

import numpy as np

from jaxgen.diffusion.table import NUM_MEMORIES, Table

Scales = Callable[[Table], np.ndarray]  # table -> [R, 1]


def interval(scale: float, start: float, end: float) -> Scales:
    """Guides between two shares of the run only, from 0 (its begin) to 1.

    Kynkaanniemi et al. 2024 (arXiv:2404.07724): guidance harms at high noise levels and is of no
    use at low ones.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"guidance from {start} to {end} of a run; give two shares of it from 0 to 1, the "
            "smaller one first"
        )

    def scales(table: Table) -> np.ndarray:
        count = num_rows(table)
        k = np.arange(count)
        inside = (k / count >= start) & ((k + 1) / count <= end)
        return np.where(inside, scale, 1.0)[:, None]

    return scales


def ramp(first: float, last: float) -> Scales:
    """Changes the scale evenly from the first row to the last."""
    return lambda table: np.linspace(first, last, num_rows(table))[:, None]


def cfg_plus_plus(strength: float) -> Scales:
    """CFG++, Chung et al. 2024 (arXiv:2406.08070) algorithm 2, strength from 0 to 1.

    Its step keeps the noise of the negative text, a' x_0(guided) + s' eps(negative). In a step of
    one evaluation the guidance's share of the next latent is then strength a' dx_0/d_output,
    instead of scale dlatent/d_output: it is guidance with a scale of its own at every row. Raises
    ValueError for samplers with a history.
    """

    def scales(table: Table) -> np.ndarray:
        rows = slice(int(table.start_row), int(table.num_rows))
        update, memory = table.update[rows, 0], slice(1, 1 + NUM_MEMORIES)
        if update[:, memory].any():
            raise ValueError(
                "CFG++ is made for samplers that step from one model output alone, and this one "
                "has a history; use ddim, euler, euler_ancestral, lcm or tcd"
            )
        signal = table.noising[1:, 0][rows]  # of the next latent
        return (strength * signal * table.denoised[rows, 1] / update[:, -2])[:, None]

    return scales


def num_rows(table: Table) -> int:
    """Counts the rows that a table runs: evaluations of the model."""
    return int(table.num_rows) - int(table.start_row)
