# SPDX-License-Identifier: MIT
"""The noise schedule a model was trained with, and the timesteps at which a sampler visits it.

Everything here is NumPy on the host. The products up to `alphas_cumprod` are rounded to float32
step by step, as PyTorch rounds them: 1 - alphas_cumprod[0] is 8.5e-4, so that rounding shows in
the fifth digit of the last sampling steps. What follows from them is float64.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen import fields

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
# the noise levels that Stable Diffusion was trained with, as scheduler_config.json has them
STABLE_DIFFUSION_BETAS: Mapping[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
}
SMALLEST_SIGNAL = 1e-30  # of alphas_cumprod; below, float32 holds no noise level
ZERO_SNR_FLOOR = 2.0**-24  # keeps sigma finite where alphas_cumprod is 0; diffusers' value


class Schedule(NamedTuple):
    """What is fixed by training: x_t = sqrt(ac[t]) x_0 + sqrt(1 - ac[t]) eps, ac = alphas_cumprod.

    prediction_type is what the model returns: "epsilon" (eps), "sample" (x_0) or "v_prediction"
    (v = alpha eps - sigma x_0, Salimans & Ho 2022, arXiv:2202.00512, appendix D).
    """

    alphas_cumprod: np.ndarray  # float64 [T], values exact in float32
    prediction_type: str = "epsilon"
    beta_schedule: str = "scaled_linear"

    @property
    def num_train_steps(self) -> int:
        return len(self.alphas_cumprod)


def noise_schedule(
    num_train_steps: int = 1000,
    beta_start: float = STABLE_DIFFUSION_BETAS["beta_start"],
    beta_end: float = STABLE_DIFFUSION_BETAS["beta_end"],
    beta_schedule: str = STABLE_DIFFUSION_BETAS["beta_schedule"],
    trained_betas: Sequence[float] | None = None,
    zero_terminal_snr: bool = False,
    prediction_type: str = "epsilon",
) -> Schedule:
    """The schedule of betas as diffusers defines it; the defaults are those of Stable Diffusion.

    beta_schedule: "linear", "scaled_linear" (linear in sqrt(beta)) or "squaredcos_cap_v2" (Nichol
    & Dhariwal 2021, arXiv:2102.09672, eq. 17). trained_betas overrides all three.
    zero_terminal_snr: Lin et al. 2023 (arXiv:2305.08891), algorithm 1; the last ac is then 0.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(_unknown("prediction_type", prediction_type, PREDICTION_TYPES))
    if num_train_steps < 1:
        raise ValueError(f"num_train_steps is {num_train_steps}; it must be at least 1")
    if trained_betas is not None:
        betas = np.asarray(trained_betas, np.float32)
    else:
        betas = _betas(num_train_steps, beta_start, beta_end, beta_schedule)
    if betas.ndim != 1 or not (np.all(betas > 0) and np.all(betas <= 1)):
        raise ValueError("trained_betas must be one list of numbers above 0 and at most 1")
    if zero_terminal_snr:
        betas = _rescale_to_zero_terminal_snr(betas)
    alphas_cumprod = _cumprod_float32(1 - betas).astype(np.float64)
    _check_levels(alphas_cumprod)
    return Schedule(alphas_cumprod, prediction_type, beta_schedule)


def training_sigmas(schedule: Schedule) -> np.ndarray:
    """Noise levels sqrt((1 - ac) / ac) of all training steps, ascending, [T], exact in float32."""
    ac = schedule.alphas_cumprod
    ac = np.where(ac == 0, ZERO_SNR_FLOOR, ac).astype(np.float32)
    return np.sqrt((1 - ac) / ac).astype(np.float64)


def timesteps(
    num_train_steps: int, num_steps: int, spacing: str, steps_offset: int = 0
) -> np.ndarray:
    """Model times in descending order, float64 [num_steps], not rounded for linspace.

    Lin et al. 2023 (arXiv:2305.08891), table 2. steps_offset belongs to "leading" alone.
    """
    _check_num_steps(num_steps, num_train_steps)
    if spacing == "linspace":
        return np.linspace(0, num_train_steps - 1, num_steps)[::-1]
    if spacing == "leading":
        stride = num_train_steps // num_steps
        return (np.arange(num_steps) * stride)[::-1] + float(steps_offset)
    if spacing == "trailing":
        # arange may hold one entry too many by rounding (61 steps: t = -1); it is cut off here
        times = np.arange(num_train_steps, 0, -num_train_steps / num_steps)[:num_steps]
        return times.round() - 1
    raise ValueError(_unknown("spacing", spacing, SPACINGS))


def integer_timesteps(
    schedule: Schedule, num_steps: int, spacing: str, steps_offset: int = 0
) -> np.ndarray:
    """`timesteps` rounded to the integers that index alphas_cumprod, int64 [num_steps]."""
    times = timesteps(schedule.num_train_steps, num_steps, spacing, steps_offset)
    times = times.round().astype(np.int64)
    if times[0] >= schedule.num_train_steps:
        raise ValueError(
            f"{num_steps} steps with steps_offset {steps_offset} start at timestep {times[0]}, but "
            f"the model knows 0 to {schedule.num_train_steps - 1}; use fewer steps or "
            "another spacing"
        )
    return times


def interval_timesteps(
    schedule: Schedule,
    num_steps: int,
    spacing: str,
    steps_offset: int = 0,
    num_visited: int | None = None,
) -> np.ndarray:
    """Integer timesteps as the DPM-Solver family takes them, int64 [num_steps], descending.

    These classes count intervals: linspace and leading divide the range into num_steps + 1 points
    and drop the last one, where only the end of the trajectory lies. num_visited: how many training
    timesteps a run may visit, counted from 0; None is all. trailing keeps its stride all the same,
    so that fewer than num_steps may be left.
    """
    last = schedule.num_train_steps if num_visited is None else num_visited
    if spacing == "trailing":
        times = timesteps(schedule.num_train_steps, num_steps, spacing)
        if last < schedule.num_train_steps:
            stride = schedule.num_train_steps / num_steps
            times = np.arange(last, 0, -stride)[:num_steps].round() - 1
        return times.astype(np.int64)
    _check_num_steps(num_steps, last - 1)
    times = timesteps(last, num_steps + 1, spacing, steps_offset)
    return times.round().astype(np.int64)[:-1]


def chosen_timesteps(schedule: Schedule, times: Sequence[Any]) -> np.ndarray:
    """The timesteps that a caller chose for the steps of a run, int64 [N].

    Raises ValueError unless they are whole numbers that the model knows, each below the one before.
    """
    times = fields.plain(list(times))
    whole = all(isinstance(t, int) and not isinstance(t, bool) for t in times)
    last = schedule.num_train_steps - 1
    falling = whole and all(a > b for a, b in itertools.pairwise([last + 1, *times, -1]))
    if not falling or len(times) == 0:
        raise ValueError(
            f"times are {fields.shown(times)}; expected whole numbers from {last} to 0, one for "
            "each step and each below the one before, such as [999, 749, 499, 249]"
        )
    return np.asarray(times, np.int64)


def start_step(num_steps: int, strength: float) -> int:
    """How many of num_steps an image-to-image run skips: strength 1 skips none, 0 skips all."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it must lie between 0 and 1")
    return num_steps - min(int(num_steps * strength), num_steps)


def _betas(num: int, beta_start: float, beta_end: float, beta_schedule: str) -> np.ndarray:
    if not 0 < beta_start < 1 or not 0 < beta_end < 1:
        raise ValueError(
            f"beta_start {beta_start} and beta_end {beta_end} must lie between 0 and 1"
        )
    if beta_schedule == "linear":
        return _linspace_float32(beta_start, beta_end, num)
    if beta_schedule == "scaled_linear":
        return _linspace_float32(beta_start**0.5, beta_end**0.5, num) ** 2
    if beta_schedule == "squaredcos_cap_v2":
        return _cosine_betas(num)
    raise ValueError(_unknown("beta_schedule", beta_schedule, BETA_SCHEDULES))


def _check_levels(alphas_cumprod: np.ndarray) -> None:
    """Refuses a schedule without noise at its start, without signal before its end, or not falling.

    The last alphas_cumprod may be 0: zero terminal SNR.
    """
    ac = alphas_cumprod
    signal = ac[:-1] if ac[-1] == 0 else ac
    if not (ac[0] < 1 and np.all(signal > SMALLEST_SIGNAL) and np.all(np.diff(ac) < 0)):
        raise ValueError(
            f"beta_start and beta_end (or trained_betas) are too near 0 or 1: alphas_cumprod goes "
            f"from {ac[0]:g} to {ac[-1]:g} and must fall at every timestep, staying between 1 and 0"
        )


def _check_num_steps(num_steps: int, most: int) -> None:
    if not 1 <= num_steps <= most:
        raise ValueError(f"num_steps is {num_steps}; this schedule allows 1 to {most}")


def _unknown(name: str, value: object, known: Sequence[str]) -> str:
    return f"{name} is {fields.shown(value)}; known are {', '.join(known)}"


def _linspace_float32(start: float, stop: float, num: int) -> np.ndarray:
    # PyTorch counts from the nearer end, with one rounding per entry
    first, last = np.float32(start), np.float32(stop)
    stride = np.float64((last - first) / np.float32(max(num - 1, 1)))
    i = np.arange(num)
    ascending = (first + stride * i).astype(np.float32)
    descending = (last - stride * (num - 1 - i)).astype(np.float32)
    return np.where(i < num // 2, ascending, descending)


def _cumprod_float32(alphas: np.ndarray) -> np.ndarray:
    # accumulated in float64 and rounded once per entry, as PyTorch does on CPU
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _cosine_betas(num_train_steps: int, max_beta: float = 0.999) -> np.ndarray:
    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    u = [i / num_train_steps for i in range(num_train_steps + 1)]
    betas = [
        min(1 - alpha_bar(after) / alpha_bar(before), max_beta)
        for before, after in itertools.pairwise(u)
    ]
    return np.asarray(betas, np.float32)


def _rescale_to_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    if len(betas) == 1:
        raise ValueError("rescale_betas_zero_snr needs more than one training timestep")
    root = np.sqrt(_cumprod_float32(1 - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))  # last entry 0, first entry unchanged
    ac = root**2
    alphas = np.concatenate([ac[:1], ac[1:] / ac[:-1]])
    return 1 - alphas
