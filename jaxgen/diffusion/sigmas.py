# SPDX-License-Identifier: MIT
"""The grid of a run: noise levels sigma = sqrt((1 - ac) / ac), and the model times of them.

A sampler takes its grid as an argument, so that every spacing and every choice of levels serves
every sampler. Three families of diffusers classes make theirs differently: DDIM and its kin visit
integer timesteps; the Euler family keeps fractional timesteps and places other levels between those
it visits; the DPM-Solver family uses integer timesteps and places levels over the whole training
range.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxgen import fields
from jaxgen.diffusion import schedule as schedules
from jaxgen.diffusion.schedule import Schedule

LEVELS = ("karras", "exponential", "beta")  # placed by a formula; None takes the schedule's own


class Grid(NamedTuple):
    """Step i evaluates the model at time t[i] and goes from sigma[i] to sigma[i + 1]."""

    t: np.ndarray  # [N], int64 for samplers of integer timesteps, float64 for the others
    sigma: np.ndarray  # float64 [N + 1], descending
    init_noise_sigma: float = 1.0  # std of a latent x_0 + sigma eps that step 0 receives

    @property
    def num_steps(self) -> int:
        return len(self.t)


def timestep_grid(
    model: Schedule,
    num_steps: int,
    spacing: str = "leading",
    steps_offset: int = 0,
    final_sigma: str = "zero",
    times: np.ndarray | None = None,
) -> Grid:
    """The grid of DDIM, DDPM and PNDM in diffusers: integer timesteps; latents have variance 1.

    final_sigma: "zero" ends at ac = 1 (set_alpha_to_one), "sigma_min" at ac[0]. times: the
    timesteps themselves, int64 [num_steps], in place of spacing and steps_offset.
    """
    t = times
    if t is None:
        t = schedules.integer_timesteps(model, num_steps, spacing, steps_offset)
    train = schedules.training_sigmas(model)
    return Grid(t, np.append(train[t], final_level(final_sigma, train[0])))


def distilled_grid(
    model: Schedule, num_steps: int, original_steps: int = 50, times: np.ndarray | None = None
) -> Grid:
    """The grid of LCM and TCD in diffusers: some of the timesteps the model was distilled on.

    original_steps: the length of the schedule the model was distilled on, at least num_steps.
    times: as in `timestep_grid`, any that the model knows.
    """
    train = schedules.training_sigmas(model)
    if times is not None:
        return Grid(times, np.append(train[times], 0.0))
    if not 1 <= num_steps <= original_steps <= model.num_train_steps:
        raise ValueError(
            f"num_steps is {num_steps} and original_steps {original_steps}; expected "
            f"1 <= num_steps <= original_steps <= {model.num_train_steps}"
        )
    stride = model.num_train_steps // original_steps
    distilled = np.arange(original_steps, 0, -1) * stride - 1
    index = np.linspace(0, original_steps, num_steps, endpoint=False)
    t = distilled[np.floor(index).astype(np.int64)]
    return Grid(t, np.append(train[t], 0.0))


def euler_grid(
    model: Schedule,
    num_steps: int,
    spacing: str = "linspace",
    steps_offset: int = 0,
    levels: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final_sigma: str = "zero",
    log_linear: bool = False,
    integer_karras: bool = False,
    times: np.ndarray | None = None,
) -> Grid:
    """The grid of EulerDiscrete, EulerAncestral, Heun, KDPM2 and LMS in diffusers.

    sigma_min, sigma_max: the ends of `levels`; None takes those that the spacing visits.
    log_linear: levels linear in log sigma (interpolation_type). integer_karras: KDPM2 rounds the
    times of Karras levels, the others keep them fractional. times: as in `timestep_grid`, without
    `levels`; the spacing still says how much noise the first step expects, as in diffusers.
    """
    t = times
    if t is None:
        t = schedules.timesteps(model.num_train_steps, num_steps, spacing, steps_offset)
    train = schedules.training_sigmas(model)
    if log_linear:
        sigma = np.exp(np.linspace(np.log(train[-1]), np.log(train[0]), num_steps + 1))
    else:
        sigma = np.interp(t, np.arange(len(train)), train)
    if levels is not None:
        sigma = placed(levels, *_ends(sigma_min, sigma_max, sigma[-1], sigma[0]), num_steps)
        t = times_of(sigma, train)
        if integer_karras and levels == "karras":
            t = t.round()
    sigma = np.append(sigma, final_level(final_sigma, train[0]))
    highest = sigma.max()
    init_noise_sigma = highest if spacing != "leading" else np.sqrt(highest**2 + 1)
    return Grid(t, sigma, float(init_noise_sigma))


def solver_grid(
    model: Schedule,
    num_steps: int,
    spacing: str = "linspace",
    steps_offset: int = 0,
    levels: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final_sigma: str = "zero",
    lambda_min_clipped: float = -math.inf,
    repeat_last: bool = False,
    fractional_cosine: bool = False,
    times: np.ndarray | None = None,
) -> Grid:
    """The grid of the DPM-Solver, DEIS and UniPC classes in diffusers; latents have variance 1.

    lambda_min_clipped: without `levels`, timesteps whose log(alpha / sigma) lies below are left
    out. repeat_last: with `levels`, final_sigma "sigma_min" repeats the lowest of them (DEIS,
    UniPC) instead of the lowest of training. Model times are cut, not rounded, to integers, except
    those of Karras levels, which are rounded unless fractional_cosine meets a cosine schedule.
    times: as in `timestep_grid`, without `levels`; none of them is clipped.
    """
    train = schedules.training_sigmas(model)
    lowest = train[0]
    if levels is None:
        t = times
        if t is None:
            visited = int(np.count_nonzero(-np.log(train) >= lambda_min_clipped))
            t = schedules.interval_timesteps(model, num_steps, spacing, steps_offset, visited)
        sigma = np.interp(t, np.arange(len(train)), train)
    else:
        sigma = placed(levels, *_ends(sigma_min, sigma_max, train[0], train[-1]), num_steps)
        t = times_of(sigma, train)
        fractional = fractional_cosine and model.beta_schedule == "squaredcos_cap_v2"
        if levels == "karras" and not fractional:
            t = t.round()
        if repeat_last:
            lowest = sigma[-1]
    sigma = np.append(sigma, final_level(final_sigma, lowest))
    return Grid(np.trunc(t), sigma, float(sigma[0]))


def edm_grid(
    model: Schedule,
    num_steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_schedule: str = "karras",
    final_sigma: str = "zero",
    repeat_last: bool = False,
) -> Grid:
    """The grid of EDMEuler and EDMDPMSolverMultistep in diffusers: no schedule, log(sigma) / 4.

    repeat_last: final_sigma "sigma_min" is the last level that is visited, as EDMEuler has it; of
    one step that is the highest.
    """
    sigma = placed(sigma_schedule, sigma_min, sigma_max, num_steps)
    lowest = sigma[-1] if repeat_last else sigma_min
    levels = np.append(sigma, final_level(final_sigma, lowest))
    return Grid(np.log(sigma) / 4, levels, math.sqrt(sigma_max**2 + 1))


def placed(levels: str, lowest: float, highest: float, num_steps: int) -> np.ndarray:
    """num_steps levels from the highest to the lowest, float64 [N].

    "karras": Karras et al. 2022 (arXiv:2206.00364) eq. 5 with rho = 7. "exponential": geometric.
    "beta": quantiles of Beta(0.6, 0.6), Lee et al. 2024 (arXiv:2407.12173).
    """
    if not 0 < lowest <= highest:
        raise ValueError(
            f"the lowest sigma is {lowest:g} and the highest {highest:g}; expected "
            "0 < sigma_min <= sigma_max"
        )
    ramp = np.linspace(0, 1, num_steps)
    if levels == "karras":
        return (highest ** (1 / 7) + ramp * (lowest ** (1 / 7) - highest ** (1 / 7))) ** 7
    if levels == "exponential":
        return np.exp(np.linspace(np.log(highest), np.log(lowest), num_steps))
    if levels == "beta":
        return lowest + special.betaincinv(0.6, 0.6, 1 - ramp) * (highest - lowest)
    raise ValueError(f"levels is {fields.shown(levels)}; known are None, {', '.join(LEVELS)}")


def times_of(sigma: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Fractional training times of the levels `sigma`, by linear interpolation in log sigma."""
    # the table is rounded to float32 as in diffusers: a time is cut to an integer afterwards, and
    # 998.99999 must stay what it is
    log_train = np.log(train.astype(np.float32)).astype(np.float64)
    log_sigma = np.log(np.maximum(sigma, 1e-10))
    low = np.searchsorted(log_train, log_sigma, side="right") - 1
    low = np.clip(low, 0, len(train) - 2)
    weight = (log_train[low] - log_sigma) / (log_train[low] - log_train[low + 1])
    weight = np.clip(weight, 0, 1)
    return (1 - weight) * low + weight * (low + 1)


def final_level(final_sigma: str, lowest: float) -> float:
    """The level after the last step: 0, or the lowest level of the schedule."""
    if final_sigma == "zero":
        return 0.0
    if final_sigma == "sigma_min":
        return float(lowest)
    raise ValueError(f"final_sigma is {fields.shown(final_sigma)}; known are zero and sigma_min")


def _ends(
    sigma_min: float | None, sigma_max: float | None, lowest: float, highest: float
) -> tuple[float, float]:
    return (
        float(lowest if sigma_min is None else sigma_min),
        float(highest if sigma_max is None else sigma_max),
    )
