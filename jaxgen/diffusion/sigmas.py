# SPDX-License-Identifier: MIT
"""Noise levels sigma = sqrt((1 - ac) / ac) at the sampling steps, and the model times of them.

Two families of diffusers classes differ in detail: the Euler family keeps fractional timesteps and
respaces the levels it visits, the DPM-Solver family uses integer timesteps and respaces the whole
training range.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from jaxgen.diffusion import schedule as schedules

RESPACINGS = (None, "karras", "exponential", "beta")


class SigmaGrid(NamedTuple):
    """Step i goes from sigma[i] to sigma[i + 1] and evaluates the model at time t[i]."""

    t: np.ndarray  # float64 [N]
    sigma: np.ndarray  # float64 [N + 1], descending
    init_noise_sigma: float  # standard deviation of the latent that row 0 receives


def euler_grid(
    schedule: schedules.Schedule,
    num_steps: int,
    spacing: str,
    steps_offset: int,
    respacing: str | None = None,
    sigma_range: tuple[float | None, float | None] = (None, None),
    final_sigma: str = "zero",
    log_linear: bool = False,
    integer_karras: bool = False,
) -> SigmaGrid:
    """The grid of EulerDiscrete, EulerAncestral, Heun, KDPM2 and LMS in diffusers.

    sigma_range: (lowest, highest) level for a respacing; None takes the level the spacing visits.
    integer_karras: KDPM2 rounds the times of Karras sigmas, the others keep them fractional.
    """
    t = schedules.timesteps(schedule.num_train_steps, num_steps, spacing, steps_offset)
    train = schedules.training_sigmas(schedule)
    if log_linear:
        sigma = np.exp(np.linspace(np.log(train[-1]), np.log(train[0]), num_steps + 1))
    else:
        sigma = np.interp(t, np.arange(len(train)), train)
    if respacing is not None:
        sigma = respaced(respacing, _range(sigma_range, sigma[-1], sigma[0]), num_steps)
        t = times_of(sigma, train)
        if integer_karras and respacing == "karras":
            t = t.round()
    sigma = np.append(sigma, final_level(final_sigma, train[0]))
    highest = sigma.max()
    init_noise_sigma = highest if spacing != "leading" else np.sqrt(highest**2 + 1)
    return SigmaGrid(t, sigma, float(init_noise_sigma))


def solver_grid(
    schedule: schedules.Schedule,
    num_steps: int,
    spacing: str,
    steps_offset: int,
    respacing: str | None = None,
    sigma_range: tuple[float | None, float | None] = (None, None),
    final_sigma: str = "zero",
    repeat_last: bool = False,
    integer_karras: bool = True,
) -> SigmaGrid:
    """The grid of the DPM-Solver, DEIS and UniPC classes in diffusers; latents have variance 1.

    repeat_last: with a respacing, final_sigma "sigma_min" repeats the lowest respaced level (DEIS
    and UniPC) instead of the lowest training level. Model times are cut, not rounded, to integers,
    except those of Karras sigmas where integer_karras is set.
    """
    train = schedules.training_sigmas(schedule)
    lowest = train[0]
    if respacing is None:
        t = schedules.interval_timesteps(schedule, num_steps, spacing, steps_offset)
        sigma = np.interp(t, np.arange(len(train)), train)
    else:
        sigma = respaced(respacing, _range(sigma_range, train[0], train[-1]), num_steps)
        t = times_of(sigma, train)
        if integer_karras and respacing == "karras":
            t = t.round()
        if repeat_last:
            lowest = sigma[-1]
    sigma = np.append(sigma, final_level(final_sigma, lowest))
    return SigmaGrid(np.trunc(t), sigma, 1.0)


def respaced(respacing: str, sigma_range: tuple[float, float], num_steps: int) -> np.ndarray:
    """num_steps levels from the highest to the lowest of sigma_range, float64 [N].

    "karras": Karras et al. 2022 (arXiv:2206.00364) eq. 5 with rho = 7. "exponential": geometric.
    "beta": quantiles of Beta(0.6, 0.6), Lee et al. 2024 (arXiv:2407.12173).
    """
    lowest, highest = sigma_range
    ramp = np.linspace(0, 1, num_steps)
    if respacing == "karras":
        return (highest ** (1 / 7) + ramp * (lowest ** (1 / 7) - highest ** (1 / 7))) ** 7
    if respacing == "exponential":
        return np.exp(np.linspace(np.log(highest), np.log(lowest), num_steps))
    if respacing == "beta":
        return lowest + special.betaincinv(0.6, 0.6, 1 - ramp) * (highest - lowest)
    raise ValueError(f"respacing is {respacing!r}; known are None, karras, exponential and beta")


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
    raise ValueError(f"final_sigma is {final_sigma!r}; known are zero and sigma_min")


def _range(
    given: tuple[float | None, float | None], lowest: float, highest: float
) -> tuple[float, float]:
    return (
        float(lowest if given[0] is None else given[0]),
        float(highest if given[1] is None else given[1]),
    )
