# SPDX-License-Identifier: MIT
"""UniPC: an exponential predictor, and a corrector that reuses the next evaluation."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from jaxgen import fields
from jaxgen.diffusion import prediction, table
from jaxgen.diffusion.exponential import log_snr, vp_level
from jaxgen.diffusion.schedule import Schedule
from jaxgen.diffusion.sigmas import Grid
from jaxgen.diffusion.table import LATENT, MEMORY, Row, Table


def unipc(
    model: Schedule,
    grid: Grid,
    *,
    order: int = 2,
    solver_type: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    disable_corrector: Sequence[int] = (),
    start_step: int = 0,
) -> Table:
    """UniPC of order 1 to 3, Zhao et al. 2023 (arXiv:2302.04867). Mirrors UniPCMultistepScheduler.

    solver_type: "bh1" takes B(h) = h, "bh2" B(h) = e^h - 1. predict_x0: integrate x_0
    rather than eps. disable_corrector: steps whose result is left as predicted.
    """
    _check(order, solver_type, grid, predict_x0, lower_order_final)
    if order > 1:
        table.check_descends("unipc", grid, start_step)
    num_steps = grid.num_steps
    update = functools.partial(_update, solver_type, predict_x0)
    rows, used = [], 0
    for i in table.steps_from(start_step, grid):
        alpha, sigma, x0, eps = prediction.at_unit_variance(model.prediction_type, grid.sigma[i])
        values = [x0 if predict_x0 else eps, *MEMORY[:3]]
        latent = LATENT
        if i > start_step and i - 1 not in disable_corrector:  # correct, with the order used before
            latest = grid.sigma[i - 1 - np.arange(used)]
            latent = update(_CORRECTED, values[1 : used + 1], latest, grid.sigma[i], values[0])
        used = min(order, num_steps - i if lower_order_final else order, i - start_step + 1)
        latest = grid.sigma[i - np.arange(used)]
        next_latent = update(latent, values[:used], latest, grid.sigma[i + 1])
        rows.append(Row(grid.t[i], 1.0, (alpha, sigma), x0, next_latent, [*values[:3], latent]))
    return table.assemble("unipc", rows, start_step)


_CORRECTED = MEMORY[3]  # the corrected latent of the step before; memories 0 to 2 are its values


def _check(
    order: int, solver_type: str, grid: Grid, predict_x0: bool, lower_order_final: bool
) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; known are 1, 2 and 3")
    if solver_type not in ("bh1", "bh2"):
        raise ValueError(f"solver_type is {fields.shown(solver_type)}; known are bh1 and bh2")
    if grid.sigma[-1] == 0 and not (predict_x0 and (lower_order_final or order == 1)):
        raise ValueError(
            "unipc reaches sigma 0 only with predict_x0=True and lower_order_final=True; use "
            'final_sigma="sigma_min" otherwise'
        )


def _update(
    solver_type: str,
    predict_x0: bool,
    base: np.ndarray,
    values: Sequence[np.ndarray],
    levels: np.ndarray,
    target: float,
    newest: np.ndarray | None = None,
) -> np.ndarray:
    """The latent at level `target` from `base` at levels[0]: predictor, or corrector with `newest`.

    values, levels: newest first, one per order; newest: the value at the target.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = vp_level(levels[0]), vp_level(target)
    h = log_snr(target) - log_snr(levels[0])
    z, keep, factor = -h, sigma_t / sigma_s, -alpha_t
    if not predict_x0:
        z, keep, factor = h, alpha_t / alpha_s, -sigma_t
    result = keep * base + factor * math.expm1(z) * values[0]
    # differences to older values, each divided by its distance r in units of h
    r = [(log_snr(level) - log_snr(levels[0])) / h for level in levels[1:]] if h else []
    differences = [(value - values[0]) / ri for value, ri in zip(values[1:], r, strict=False)]
    if newest is not None:
        r, differences = [*r, 1.0], [*differences, newest - values[0]]
    if not differences:
        return result
    # one difference takes 1/2, also where the conditions would give it another value
    weights = np.asarray([0.5]) if len(r) == 1 else _weights(np.asarray(r), z, solver_type)
    scale = z if solver_type == "bh1" else math.expm1(z)
    combined = sum(w * d for w, d in zip(weights, differences, strict=True))
    return result + factor * scale * combined


def _weights(r: np.ndarray, z: float, solver_type: str) -> np.ndarray:
    """The solution of the order conditions R(r) a = b of Zhao et al. 2023."""
    scale = z if solver_type == "bh1" else math.expm1(z)
    conditions = [r**k for k in range(len(r))]
    phi, factorial, right = math.expm1(z) / z - 1, 1, []
    for k in range(1, len(r) + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / z - 1 / factorial
    return np.linalg.solve(np.stack(conditions), np.asarray(right))
