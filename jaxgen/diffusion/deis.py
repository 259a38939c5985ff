# SPDX-License-Identifier: MIT
"""DEIS: Adams-Bashforth for eps in the variable rho = sigma / alpha, on its logarithm."""

import numpy as np
from numpy.polynomial import Polynomial

from jaxgen.diffusion import prediction, sigma_samplers, table
from jaxgen.diffusion.exponential import vp_level
from jaxgen.diffusion.schedule import Schedule
from jaxgen.diffusion.sigmas import Grid
from jaxgen.diffusion.table import LATENT, MEMORY, Row, Table


def deis(
    model: Schedule,
    grid: Grid,
    *,
    order: int = 2,
    lower_order_final: bool = True,
    start_step: int = 0,
) -> Table:
    """Log-rho multistep DEIS, Zhang & Chen 2022 (arXiv:2204.13902). Orders 1 to 3.

    Mirrors DEISMultistepScheduler. The grid must end above sigma 0, where log rho is infinite.
    lower_order_final: below 15 steps the last two fall to orders 2 and 1.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; known are 1, 2 and 3")
    if grid.sigma[-1] == 0:
        raise ValueError('deis cannot step to sigma 0; use a grid with final_sigma="sigma_min"')
    if order > 1:
        table.check_descends("deis", grid, start_step)
    num_steps = grid.num_steps
    few = lower_order_final and num_steps < 15
    rows = []
    for i in table.steps_from(start_step, grid):
        limit = min(num_steps - i, 2) if few and i >= num_steps - 2 else 3
        now = min(order, limit, i - start_step + 1)
        alpha, sigma, x0, eps = prediction.at_unit_variance(model.prediction_type, grid.sigma[i])
        values = [eps, *MEMORY[:2]]
        weights = _log_rho_weights(grid.sigma[i - np.arange(now)], grid.sigma[i + 1])
        change = sum(w * value for w, value in zip(weights, values, strict=False))
        latent = vp_level(grid.sigma[i + 1])[0] * (LATENT / alpha + change)
        rows.append(Row(grid.t[i], 1.0, (alpha, sigma), x0, latent, values[:2]))
    return table.assemble("deis", rows, start_step)


def _log_rho_weights(nodes: np.ndarray, target: float) -> list[float]:
    """Integrals of the Lagrange polynomials in log(rho), over rho from nodes[0] to target.

    With u = log(rho / nodes[0]) the integrals are nodes[0] times those of p(u) e^u over [0, U].
    """
    u = np.log(nodes / nodes[0])
    end = np.log(target / nodes[0])
    return [float(nodes[0] * _integral_times_exp(p, end)) for p in sigma_samplers.lagrange_basis(u)]


def _integral_times_exp(polynomial: Polynomial, end: float) -> float:
    """The integral of p(u) e^u over [0, end], by parts: e^u (p - p' + p'' - ...)."""
    alternating, derivative = polynomial, polynomial
    while derivative.degree() > 0:
        derivative = -derivative.deriv()
        alternating = alternating + derivative
    return np.exp(end) * alternating(end) - alternating(0.0)
