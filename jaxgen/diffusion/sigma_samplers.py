# SPDX-License-Identifier: MIT
"""Samplers that step through noise levels sigma of a latent x_0 + sigma eps.

Karras et al. 2022 (arXiv:2206.00364) and the k-diffusion methods built on it. The derivative
dx/dsigma is eps; the model sees the latent divided by sqrt(sigma^2 + 1). Their grid is
`sigmas.euler_grid`; options are those of the diffusers class named in each docstring.
"""

import math

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.polynomial import polyfromroots

from jaxgen.diffusion import prediction, schedule, sigmas, table
from jaxgen.diffusion.schedule import Schedule
from jaxgen.diffusion.sigmas import Grid
from jaxgen.diffusion.table import LATENT, MEMORY, NOISE, Row, Table


def euler(
    model: Schedule,
    grid: Grid,
    *,
    continuous_time: bool = False,
    sigma_data: float | None = None,
    start_step: int = 0,
) -> Table:
    """Euler's method, Karras et al. 2022 alg. 2 without churn. Mirrors EulerDiscreteScheduler.

    continuous_time: a v_prediction model is given log(sigma) / 4 as its time. sigma_data: of models
    of EDM, on `sigmas.edm_grid`; mirrors EDMEulerScheduler.
    """
    timed = continuous_time and model.prediction_type == "v_prediction"
    rows = []
    for i in table.steps_from(start_step, grid):
        sigma, after = grid.sigma[i : i + 2]
        t = math.log(sigma) / 4 if timed else grid.t[i]
        if sigma_data is None:
            scale, x0, eps = prediction.at_level(model.prediction_type, sigma)
        else:
            scale, x0, eps = prediction.at_edm_level(model.prediction_type, sigma, sigma_data)
        rows.append(Row(t, scale, (1.0, sigma), x0, LATENT + (after - sigma) * eps))
    return table.assemble("euler", rows, start_step, grid.init_noise_sigma)


def euler_ancestral(model: Schedule, grid: Grid, *, start_step: int = 0) -> Table:
    """Euler to a lower level, then fresh noise back up. Mirrors EulerAncestralDiscreteScheduler."""
    rows = []
    for i in table.steps_from(start_step, grid):
        sigma, after = grid.sigma[i : i + 2]
        up, down = _ancestral(sigma, after)
        scale, x0, eps = prediction.at_level(model.prediction_type, sigma)
        latent = LATENT + (down - sigma) * eps + up * NOISE
        rows.append(Row(grid.t[i], scale, (1.0, sigma), x0, latent))
    return table.assemble("euler_ancestral", rows, start_step, grid.init_noise_sigma)


def heun(model: Schedule, grid: Grid, *, start_step: int = 0) -> Table:
    """Heun's second-order method, Karras et al. 2022 alg. 1; 2 N - 1 rows of N steps.

    Mirrors HeunDiscreteScheduler. The last step, to sigma = 0, is Euler's.
    """
    saved, derivative = MEMORY[:2]
    rows = []
    for i in table.steps_from(start_step, grid):
        sigma, after = grid.sigma[i : i + 2]
        scale, x0, eps = prediction.at_level(model.prediction_type, sigma)
        latent = LATENT + (after - sigma) * eps
        rows.append(Row(grid.t[i], scale, (1.0, sigma), x0, latent, [LATENT, eps]))
        if i + 1 < grid.num_steps:
            scale, x0, eps = prediction.at_level(model.prediction_type, after)
            latent = saved + (after - sigma) * (derivative + eps) / 2
            rows.append(Row(grid.t[i + 1], scale, (1.0, after), x0, latent))
    return table.assemble("heun", rows, _first_row(start_step, grid), grid.init_noise_sigma)


def dpm2(model: Schedule, grid: Grid, *, start_step: int = 0) -> Table:
    """Midpoint method in log sigma, after DPM-Solver-2 (arXiv:2206.00927); 2 N - 1 rows of N steps.

    Mirrors KDPM2DiscreteScheduler.
    """
    return _dpm2(model, grid, start_step, ancestral=False)


def dpm2_ancestral(model: Schedule, grid: Grid, *, start_step: int = 0) -> Table:
    """`dpm2` to a lower level, then fresh noise. Mirrors KDPM2AncestralDiscreteScheduler."""
    return _dpm2(model, grid, start_step, ancestral=True)


def lms(model: Schedule, grid: Grid, *, start_step: int = 0) -> Table:
    """Linear multistep of order 4 in sigma (Adams-Bashforth on an uneven grid).

    Mirrors LMSDiscreteScheduler, also where a run skips steps: it then takes the coefficients of
    full order at once, with the missing derivatives as zero.
    """
    table.check_descends("lms", grid, start_step)
    rows = []
    for i in table.steps_from(start_step, grid):
        sigma = grid.sigma[i]
        scale, x0, eps = prediction.at_level(model.prediction_type, sigma)
        derivatives = [eps, *MEMORY[:3]]
        weights = _adams_bashforth(grid.sigma, i, order=min(i + 1, 4))
        latent = LATENT + sum(w * d for w, d in zip(weights, derivatives, strict=False))
        rows.append(Row(grid.t[i], scale, (1.0, sigma), x0, latent, derivatives[:3]))
    return table.assemble("lms", rows, start_step, grid.init_noise_sigma)


def _dpm2(model: Schedule, grid: Grid, start_step: int, ancestral: bool) -> Table:
    rows = []
    for i in table.steps_from(start_step, grid):
        sigma, after = grid.sigma[i : i + 2]
        up, down = _ancestral(sigma, after) if ancestral else (0.0, after)
        middle = math.sqrt(sigma * down)  # 0 in the last step, which is therefore Euler's
        scale, x0, eps = prediction.at_level(model.prediction_type, sigma)
        latent = LATENT + (middle - sigma) * eps
        rows.append(Row(grid.t[i], scale, (1.0, sigma), x0, latent, [LATENT]))
        if i + 1 < grid.num_steps:
            t = _time_of(middle, model)
            scale, x0, eps = prediction.at_level(model.prediction_type, middle)
            latent = MEMORY[0] + (down - sigma) * eps + up * NOISE
            # noising at the step's end, where diffusers places masked latents as well
            rows.append(Row(t, scale, (1.0, after), x0, latent))
    name = "dpm2_ancestral" if ancestral else "dpm2"
    return table.assemble(name, rows, _first_row(start_step, grid), grid.init_noise_sigma)


def _first_row(start_step: int, grid: Grid) -> int:
    return min(2 * start_step, 2 * grid.num_steps - 1)  # two rows a step, but one in the last


def _time_of(sigma: float, model: Schedule) -> float:
    train = schedule.training_sigmas(model)
    return float(sigmas.times_of(np.asarray([sigma]), train)[0])


def _ancestral(sigma: float, after: float) -> tuple[float, float]:
    """(up, down) with up^2 + down^2 = after^2: step down to `down`, then add noise of size `up`."""
    up = math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2)
    return up, math.sqrt(after**2 - up**2)


def _adams_bashforth(sigma: np.ndarray, i: int, order: int) -> list[float]:
    """Integrals from sigma[i] to sigma[i + 1] of the Lagrange polynomials on the last levels."""
    nodes = sigma[i - np.arange(order)] - sigma[i]  # from the current level: no cancellation
    return [float(p.integ()(sigma[i + 1] - sigma[i])) for p in lagrange_basis(nodes)]


def lagrange_basis(nodes: np.ndarray) -> list[Polynomial]:
    """The polynomials that are 1 at their own node and 0 at the others, one per node.

    Every multistep method integrates them.
    """
    polynomials = []
    for k, node in enumerate(nodes):
        others = np.delete(nodes, k)
        polynomials.append(Polynomial(polyfromroots(others)) / np.prod(node - others))
    return polynomials
