# SPDX-License-Identifier: MIT
"""Tables run in float64 NumPy: on unit vectors, and on Gaussian data with an exact model."""

import inspect
from typing import NamedTuple

import numpy as np

from jaxgen.diffusion import schedule
from jaxgen.diffusion.scheduler_classes import CLASSES, SAMPLERS
from jaxgen.diffusion.table import NUM_MEMORIES, Table

MEAN, STD = 0.7, 0.4  # of the Gaussian data


class LinearMap(NamedTuple):
    """A run of R rows on D = 1 + 2 R unit vectors: first latent, outputs, noises."""

    inputs: np.ndarray  # [R, D] what the model sees
    latents: np.ndarray  # [R, D] after each row


def table(sampler, model: schedule.Schedule, num_steps: int, start_step: int = 0, **options):
    """The table of a sampler, or of a name in SAMPLERS, on the grid of its diffusers class.

    options: those of the sampler and of its grid together.
    """
    if isinstance(sampler, str):
        class_name, fixed = SAMPLERS[sampler]
        sampler = CLASSES[class_name].sampler
        renamed = {"solver_order": "order", "algorithm_type": "algorithm"}
        options = {renamed[key]: value for key, value in fixed.items()} | options
    make = next(known.grid for known in CLASSES.values() if known.sampler is sampler)
    of_grid = {k: v for k, v in options.items() if k in inspect.signature(make).parameters}
    of_sampler = {k: v for k, v in options.items() if k not in of_grid}
    return sampler(model, make(model, num_steps, **of_grid), start_step=start_step, **of_sampler)


def rows_of(table: Table) -> range:
    return range(int(table.start_row), int(table.num_rows))


def linear_map(table: Table) -> LinearMap:
    rows = rows_of(table)
    units = np.eye(1 + 2 * len(rows))
    outputs, noises = units[1 : 1 + len(rows)], units[1 + len(rows) :]
    state = np.zeros((1 + NUM_MEMORIES, len(units)))
    state[0] = units[0]
    inputs, latents = [], []
    for i, output, noise in zip(rows, outputs, noises, strict=True):
        inputs.append(table.scale[i] * state[0])
        state = table.update[i] @ np.vstack([state, output, noise])
        latents.append(state[0])
    return LinearMap(np.stack(inputs), np.stack(latents))


def level_of(model: schedule.Schedule, t: float) -> tuple[float, float]:
    """(alpha, sigma) that the model at time t stands for, sigma / alpha linear between times."""
    train = schedule.training_sigmas(model)
    level = np.interp(t, np.arange(len(train)), train)
    alpha = 1 / np.sqrt(level**2 + 1)
    return alpha, level * alpha


def exact_output(model: schedule.Schedule, t: float) -> tuple[float, float]:
    """(slope, shift) of the best possible model on Gaussian data: output = slope x + shift.

    E[x_0 | x_t] and E[eps | x_t] of x_t = alpha x_0 + sigma eps are linear in x_t.
    """
    alpha, sigma = level_of(model, t)
    variance = (alpha * STD) ** 2 + sigma**2
    eps = sigma / variance, -sigma * alpha * MEAN / variance
    x0 = alpha * STD**2 / variance, sigma**2 * MEAN / variance
    match model.prediction_type:
        case "epsilon":
            return eps
        case "sample":
            return x0
        case _:
            return alpha * eps[0] - sigma * x0[0], alpha * eps[1] - sigma * x0[1]


def latents_of_ode(model: schedule.Schedule, table: Table, quantile: float = 1.3) -> np.ndarray:
    """[R + 1] latents of a run without noise that starts on the exact trajectory of `quantile`."""
    rows = rows_of(table)
    state = np.zeros(1 + NUM_MEMORIES)
    state[0] = exact_latent(table, rows[0], quantile)
    latents = [state[0]]
    for i in rows:
        slope, shift = exact_output(model, table.t[i])
        output = slope * table.scale[i] * state[0] + shift
        state = table.update[i] @ np.concatenate([state, [output, 0.0]])
        latents.append(state[0])
    return np.asarray(latents)


def exact_latent(table: Table, i: int, quantile: float) -> float:
    """The probability-flow ODE moves every quantile of the data's Gaussian to that of its noised
    Gaussian: a closed form."""
    signal, noise = table.noising[i]
    return signal * MEAN + quantile * np.sqrt((signal * STD) ** 2 + noise**2)


def final_moments(model: schedule.Schedule, table: Table) -> tuple[float, float]:
    """(mean, standard deviation) of the final latent, exactly, from noised data at the start."""
    rows = rows_of(table)
    signal, noise = table.noising[rows[0]]
    mean, covariance = np.zeros(1 + NUM_MEMORIES), np.zeros((1 + NUM_MEMORIES,) * 2)
    mean[0], covariance[0, 0] = signal * MEAN, (signal * STD) ** 2 + noise**2
    for i in rows:
        slope, shift = exact_output(model, table.t[i])
        inputs = np.vstack([np.eye(1 + NUM_MEMORIES), np.zeros((2, 1 + NUM_MEMORIES))])
        inputs[-2, 0] = slope * table.scale[i]
        offset = np.zeros(3 + NUM_MEMORIES)
        offset[-2] = shift
        fresh = np.zeros((3 + NUM_MEMORIES,) * 2)
        fresh[-1, -1] = 1
        mean = table.update[i] @ (inputs @ mean + offset)
        covariance = table.update[i] @ (inputs @ covariance @ inputs.T + fresh) @ table.update[i].T
    return float(mean[0]), float(np.sqrt(covariance[0, 0]))
