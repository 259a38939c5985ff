# SPDX-License-Identifier: MIT
"""DPM-Solver and DPM-Solver++: exponential integrators in lambda = log(alpha / sigma).

Lu et al. 2022 (arXiv:2206.00927; noise prediction, "dpmsolver") and 2022 (arXiv:2211.01095; data
prediction, "dpmsolver++", with its SDE forms). A step needs
the model's value and its derivatives in lambda, which come from older evaluations ("multistep")
or from evaluations inside the step ("singlestep").

Third-order sde-dpmsolver++ is kept as diffusers has it, with a sign in its last term that keeps it
from converging (test_samplers.py); choose order 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgen import fields
from jaxgen.diffusion import exponential, prediction, table
from jaxgen.diffusion.exponential import log_snr
from jaxgen.diffusion.schedule import Schedule
from jaxgen.diffusion.sigmas import Grid
from jaxgen.diffusion.table import LATENT, MEMORY, Row, Table


class _Frame(NamedTuple):
    scale: float  # the model sees scale * latent
    noising: tuple[float, float]
    x0: np.ndarray
    eps: np.ndarray
    size: float  # the latent is so many times one of variance 1
    next_size: float  # the same after the step


def _frame(prediction_type: str, levels: np.ndarray, sigma_data: float | None) -> _Frame:
    """What a latent is at the first of two levels: of variance 1, or in EDM x_0 + sigma eps."""
    if sigma_data is None:
        alpha, sigma, x0, eps = prediction.at_unit_variance(prediction_type, levels[0])
        return _Frame(1.0, (alpha, sigma), x0, eps, 1.0, 1.0)
    scale, x0, eps = prediction.at_edm_level(prediction_type, levels[0], sigma_data)
    size, next_size = np.hypot(1, levels)
    return _Frame(scale, (1.0, levels[0]), x0, eps, size, next_size)


def dpm_multistep(
    model: Schedule,
    grid: Grid,
    *,
    order: int = 2,
    algorithm: str = "dpmsolver++",
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    sigma_data: float | None = None,
    start_step: int = 0,
) -> Table:
    """The multistep forms of order 1 to 3. Mirrors DPMSolverMultistepScheduler.

    DPM-Solver++(2M) is order 2 (arXiv:2211.01095, alg. 2), its SDE form "sde-dpmsolver++", and
    DPM-Solver++(3M) order 3. solver_type: "midpoint" or "heun", of second order.
    lower_order_final: below 15 steps the last two fall to orders 2 and 1. euler_at_final: the last
    is of order 1, as it is on every grid that ends at sigma 0. sigma_data: of models of EDM, on
    `sigmas.edm_grid`, for the ++ forms; mirrors EDMDPMSolverMultistepScheduler.
    """
    _check(order, algorithm, solver_type, grid)
    if order > 1:
        table.check_descends("dpm_multistep", grid, start_step)
    num_steps = grid.num_steps
    euler_last = euler_at_final or grid.sigma[-1] == 0
    rows = []
    for i in table.steps_from(start_step, grid):
        now = min(order, i - start_step + 1)
        now = min(now, _order_limit(num_steps, i, lower_order_final, euler_last))
        frame = _frame(model.prediction_type, grid.sigma[i : i + 2], sigma_data)
        values = [frame.x0 if "++" in algorithm else frame.eps, *MEMORY[:2]]
        lambdas = [log_snr(level) for level in grid.sigma[i - np.arange(-1, now)]]
        derivatives = _multistep_derivatives(values[:now], lambdas)
        latent = exponential.step(
            algorithm, LATENT / frame.size, grid.sigma[i], grid.sigma[i + 1], derivatives,
            midpoint=solver_type == "midpoint" and now == 2,
        )  # fmt: skip
        latent = frame.next_size * latent
        rows.append(Row(grid.t[i], frame.scale, frame.noising, frame.x0, latent, values[:2]))
    spread = 1.0 if sigma_data is None else grid.init_noise_sigma
    return table.assemble("dpm_multistep", rows, start_step, spread)


def dpmpp_2s(
    model: Schedule,
    grid: Grid,
    *,
    order: int = 2,
    algorithm: str = "dpmsolver++",
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
    start_step: int = 0,
) -> Table:
    """DPM-Solver++(2S), singlestep, in orders 1 to 3. Mirrors DPMSolverSinglestepScheduler.

    The grid counts evaluations: groups of `order` rows make one step of the method, each row
    restarting from the latent that the group began with.
    """
    _check(order, algorithm, solver_type, grid)
    if order > 1:
        table.check_descends("dpmpp_2s", grid, start_step)
    if algorithm == "sde-dpmsolver":
        raise ValueError("sde-dpmsolver has no singlestep form; use sde-dpmsolver++")
    orders = _singlestep_orders(grid, order, lower_order_final)
    saved = MEMORY[2]
    rows = []
    for i in table.steps_from(start_step, grid):
        now = min(orders[i], i - start_step + 1)  # a run may begin inside a group
        alpha, sigma, x0, eps = prediction.at_unit_variance(model.prediction_type, grid.sigma[i])
        value = x0 if "++" in algorithm else eps
        base = LATENT if now == 1 else saved
        values = [value, *MEMORY[:2]]
        lambdas = [log_snr(level) for level in grid.sigma[i - np.arange(-1, now)]]
        derivatives = _singlestep_derivatives(values[:now], lambdas, solver_type)
        latent = exponential.step(
            algorithm, base, grid.sigma[i + 1 - now], grid.sigma[i + 1], derivatives,
            midpoint=solver_type == "midpoint" and now == 2,
        )  # fmt: skip
        rows.append(Row(grid.t[i], 1.0, (alpha, sigma), x0, latent, [*values[:2], base]))
    return table.assemble("dpmpp_2s", rows, start_step)


def _check(order: int, algorithm: str, solver_type: str, grid: Grid) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; known are 1, 2 and 3")
    if algorithm not in exponential.ALGORITHMS:
        known = ", ".join(exponential.ALGORITHMS)
        raise ValueError(f"algorithm is {fields.shown(algorithm)}; known are {known}")
    if algorithm == "sde-dpmsolver" and order == 3:
        raise ValueError("sde-dpmsolver has no third order; use sde-dpmsolver++ or order 2")
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type is {fields.shown(solver_type)}; known are midpoint and heun")
    if grid.sigma[-1] == 0 and "++" not in algorithm:
        raise ValueError(
            f"{algorithm} cannot step to sigma 0, where eps has no meaning; use "
            'final_sigma="sigma_min" or the ++ form'
        )


def _order_limit(num_steps: int, i: int, lower_order_final: bool, euler_at_final: bool) -> int:
    few = lower_order_final and num_steps < 15
    if i == num_steps - 1 and (few or euler_at_final):
        return 1
    return 2 if i == num_steps - 2 and few else 3


def _multistep_derivatives(
    values: Sequence[np.ndarray], lambdas: Sequence[float]
) -> list[np.ndarray]:
    """[D0, D1, D2] up to the number of values, times 1, h and h^2.

    values: newest first. lambdas: target of the step, then one per value.
    """
    gaps = -np.diff(lambdas)  # h, then the older steps
    if len(values) == 1:
        return list(values)
    first = gaps[0] / gaps[1] * (values[0] - values[1])
    if len(values) == 2:
        return [values[0], first]
    older = gaps[0] / gaps[2] * (values[1] - values[2])
    span = gaps[1] + gaps[2]
    first_derivative = first + gaps[1] / span * (first - older)
    return [values[0], first_derivative, gaps[0] / span * (first - older)]


def _singlestep_derivatives(
    values: Sequence[np.ndarray], lambdas: Sequence[float], solver_type: str
) -> list[np.ndarray]:
    """As `_multistep_derivatives`, but at the step's start, where the oldest value is."""
    start = lambdas[-1]
    h = lambdas[0] - start
    if len(values) == 1:
        return list(values)
    newest = lambdas[1] - start
    by_newest = h / newest * (values[0] - values[-1])
    if len(values) == 2 or solver_type == "midpoint":
        return [values[-1], by_newest]
    inner = lambdas[2] - start
    by_inner = h / inner * (values[1] - values[-1])
    first_derivative = (newest * by_inner - inner * by_newest) / (newest - inner)
    return [values[-1], first_derivative, 2 * h * (by_newest - by_inner) / (newest - inner)]


def _singlestep_orders(grid: Grid, order: int, lower_order_final: bool) -> list[int]:
    """Order of each row: groups 1, 2, ..., order, with smaller groups where they do not fit."""
    group = list(range(1, order + 1))
    groups, rest = divmod(grid.num_steps, order)
    to_zero = grid.sigma[-1] == 0
    if not to_zero and rest == 0 and not lower_order_final:
        return group * groups
    if order == 1:
        return [1] * grid.num_steps
    # a last group that fits is divided: 1, 2, 1 for order 3 and 1, 1 for order 2
    last = group[:rest] if rest else [*group[:-1], 1]
    orders = group * (groups if rest else groups - 1) + last
    if to_zero:
        orders[-1] = 1
    return orders
