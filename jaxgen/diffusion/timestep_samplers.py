# SPDX-License-Identifier: MIT
"""Samplers that step through integer timesteps of a variance-preserving latent.

x_t = sqrt(ac[t]) x_0 + sqrt(1 - ac[t]) eps: the latent keeps unit variance and is the model's
input as it is. Their grid is `sigmas.timestep_grid`; options are those of the diffusers class named
in each docstring.
"""

import math

import numpy as np

from jaxgen import fields
from jaxgen.diffusion import prediction, table
from jaxgen.diffusion.schedule import Schedule
from jaxgen.diffusion.sigmas import Grid
from jaxgen.diffusion.table import LATENT, MEMORY, NOISE, NOTHING, OUTPUT, Row, Table


def ddim(
    model: Schedule,
    grid: Grid,
    *,
    eta: float = 0.0,
    start_step: int = 0,
) -> Table:
    """DDIM, Song et al. 2021 (arXiv:2010.02502) eq. 12; eta = 0 is deterministic, 1 is DDPM.

    Mirrors DDIMScheduler: every step ends T // N timesteps lower, whatever the spacing.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must lie between 0 and 1")
    times = _integer_times(grid)
    stride = model.num_train_steps // grid.num_steps
    rows = []
    for i in table.steps_from(start_step, grid):
        t = times[i]
        ac, ac_next = _ac(model, grid, t), _ac(model, grid, t - stride)
        x0, eps = _predict(model, ac)
        std = eta * math.sqrt((1 - ac_next) / (1 - ac) * (1 - ac / ac_next))
        latent = math.sqrt(ac_next) * x0 + math.sqrt(1 - ac_next - std**2) * eps + std * NOISE
        rows.append(Row(t, 1.0, _noising(ac), x0, latent))
    return table.assemble("ddim", rows, start_step)


def ddpm(
    model: Schedule,
    grid: Grid,
    *,
    variance: str = "fixed_small",
    start_step: int = 0,
) -> Table:
    """Ancestral sampling, Ho et al. 2020 (arXiv:2006.11239) eq. 7. Mirrors DDPMScheduler.

    variance: "fixed_small" is the posterior's (eq. 7), "fixed_large" is beta_t, their two choices.
    """
    if variance not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise ValueError(
            f"variance is {fields.shown(variance)}; known are fixed_small, fixed_small_log "
            "and fixed_large"
        )
    times = _integer_times(grid)
    rows = []
    for i in table.steps_from(start_step, grid):
        t = times[i]
        ac = _ac(model, grid, t)
        ac_next = _ac(model, grid, times[i + 1]) if i + 1 < grid.num_steps else 1.0
        x0, _ = _predict(model, ac)
        alpha = ac / ac_next
        beta = 1 - alpha
        var = beta if variance == "fixed_large" else (1 - ac_next) / (1 - ac) * beta
        mean = (
            math.sqrt(ac_next) * beta / (1 - ac) * x0
            + math.sqrt(alpha) * (1 - ac_next) / (1 - ac) * LATENT
        )
        latent = mean + (math.sqrt(var) if t > 0 else 0.0) * NOISE
        rows.append(Row(t, 1.0, _noising(ac), x0, latent))
    return table.assemble("ddpm", rows, start_step)


def lcm(
    model: Schedule,
    grid: Grid,
    *,
    timestep_scaling: float = 10.0,
    start_step: int = 0,
) -> Table:
    """Latent consistency sampling, Luo et al. 2023 (arXiv:2310.04378). Mirrors LCMScheduler.

    Its grid is `sigmas.distilled_grid`.
    """
    times = _integer_times(grid)
    rows = []
    for i in table.steps_from(start_step, grid):
        t = times[i]
        ac = _ac(model, grid, t)
        x0, _ = _predict(model, ac)
        scaled = float(t) * timestep_scaling
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        latent = out * x0 + skip * LATENT
        if i + 1 < grid.num_steps:
            ac_next = _ac(model, grid, times[i + 1])
            latent = math.sqrt(ac_next) * latent + math.sqrt(1 - ac_next) * NOISE
        rows.append(Row(t, 1.0, _noising(ac), x0, latent))
    return table.assemble("lcm", rows, start_step)


def tcd(
    model: Schedule,
    grid: Grid,
    *,
    eta: float = 0.3,
    start_step: int = 0,
) -> Table:
    """Trajectory consistency sampling, Zheng et al. 2024 (arXiv:2402.19159). Mirrors TCDScheduler.

    Its grid is `sigmas.distilled_grid`. eta (gamma in the paper): 0 is deterministic, 1 fully
    stochastic.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must lie between 0 and 1")
    times = _integer_times(grid)
    rows = []
    for i in table.steps_from(start_step, grid):
        ac = _ac(model, grid, times[i])
        t_next = times[i + 1] if i + 1 < grid.num_steps else 0
        # float32 as in PyTorch, whose product decides which integer lies below
        s = int(np.floor(np.float32(1 - eta) * np.float32(t_next)))
        ac_next, ac_s = _ac(model, grid, t_next), _ac(model, grid, s)
        x0, eps = _predict(model, ac)
        latent = math.sqrt(ac_s) * x0 + math.sqrt(1 - ac_s) * eps
        if eta > 0 and i + 1 < grid.num_steps:
            kept = ac_next / ac_s
            latent = math.sqrt(kept) * latent + math.sqrt(1 - kept) * NOISE
        rows.append(Row(times[i], 1.0, _noising(ac), x0, latent))
    return table.assemble("tcd", rows, start_step)


def pndm(
    model: Schedule,
    grid: Grid,
    *,
    skip_prk_steps: bool = False,
    start_step: int = 0,
) -> Table:
    """Pseudo linear multistep, Liu et al. 2022 (arXiv:2202.09778). Mirrors PNDMScheduler.

    It starts with three Runge-Kutta steps of four rows each (N >= 4 steps), or, with
    skip_prk_steps as in Stable Diffusion ("PLMS"), with one Heun-like step: N + 1 rows.
    The history holds raw model outputs, which makes v_prediction a first-order method here as in
    diffusers. A run that skips steps counts its rows from there, also as in diffusers.
    """
    if model.prediction_type == "sample":
        raise ValueError("pndm combines model outputs linearly: it takes epsilon or v_prediction")
    spaced = _integer_times(grid)
    stride = model.num_train_steps // grid.num_steps
    if skip_prk_steps:
        rk_times = spaced[:0]
        times = np.concatenate([spaced[:2], spaced[1:]]) if grid.num_steps > 1 else spaced
    else:
        rk_times = _runge_kutta_timesteps(spaced, stride)
        times = np.concatenate([rk_times, spaced[3:]])
    rows = []
    for count, t in enumerate(times[table.steps_from(start_step, grid).start :]):
        if count < len(rk_times):
            source = rk_times[count // 4 * 4]
            target = t - (0 if count % 2 else stride // 2)
            base, combined, memory = _runge_kutta_stage(count)
        else:
            source, target = (t, t - stride) if count != 1 else (t + stride, t)
            base, combined, memory = _linear_multistep(count, started=not skip_prk_steps)
        latent = _pndm_transfer(model, grid, base, combined, source, target)
        x0, _ = _predict(model, _ac(model, grid, t))
        rows.append(Row(t, 1.0, _noising(_ac(model, grid, t)), x0, latent, memory))
    return table.assemble("pndm", rows, start_step)


def _integer_times(grid: Grid) -> np.ndarray:
    if not np.issubdtype(grid.t.dtype, np.integer):
        raise ValueError(
            "this sampler steps through integer timesteps; make its grid with "
            "sigmas.timestep_grid, or sigmas.distilled_grid for lcm and tcd"
        )
    return grid.t


def _ac(model: Schedule, grid: Grid, t: int) -> float:
    """alphas_cumprod at t; below 0, where no timestep is left, that of the grid's last level."""
    if t >= 0:
        return float(model.alphas_cumprod[t])
    return 1.0 if grid.sigma[-1] == 0 else float(model.alphas_cumprod[0])


def _noising(ac: float) -> tuple[float, float]:
    return math.sqrt(ac), math.sqrt(1 - ac)


def _predict(model: Schedule, ac: float) -> tuple[np.ndarray, np.ndarray]:
    return prediction.denoised_and_noise(model.prediction_type, math.sqrt(ac), math.sqrt(1 - ac))


# PNDM's memories: three older outputs, the latent a step started from, the Runge-Kutta sum
_OLDER, _SAVED, _SUM = MEMORY[:3], MEMORY[3], MEMORY[4]


def _runge_kutta_timesteps(spaced: np.ndarray, stride: int) -> np.ndarray:
    """The 12 evaluation times of three steps: t, t - h/2, t - h/2, t - h for each."""
    if len(spaced) < 4:
        raise ValueError(
            f"the grid has {len(spaced)} steps; pndm needs at least 4 for its Runge-Kutta start, "
            "or skip_prk_steps=True"
        )
    ends_and_middles = spaced[3::-1].repeat(2) + np.tile([0, stride // 2], 4)
    return ends_and_middles[:-1].repeat(2)[1:-1][::-1]


def _runge_kutta_stage(count: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Returns (start, combined output, next memories) of a classical Runge-Kutta stage."""
    match count % 4:
        case 0:
            return LATENT, OUTPUT, [OUTPUT, *_OLDER[:2], LATENT, _SUM + OUTPUT / 6]
        case 1 | 2:
            return _SAVED, OUTPUT, [*_OLDER, _SAVED, _SUM + OUTPUT / 3]
        case _:
            return _SAVED, _SUM + OUTPUT / 6, [*_OLDER, _SAVED, NOTHING]


def _linear_multistep(count: int, started: bool) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(latent to start from, combined output, next memories) of Adams-Bashforth."""
    e1, e2, e3 = _OLDER
    pushed = [OUTPUT, e1, e2, LATENT, NOTHING]
    if started or count >= 4:
        return LATENT, (55 * OUTPUT - 59 * e1 + 37 * e2 - 9 * e3) / 24, pushed
    match count:
        case 0:
            return LATENT, OUTPUT, pushed
        case 1:  # the first step again, with the mean of both ends; this output is not kept
            return _SAVED, (OUTPUT + e1) / 2, [*_OLDER, NOTHING, NOTHING]
        case 2:
            return LATENT, (3 * OUTPUT - e1) / 2, pushed
        case _:
            return LATENT, (23 * OUTPUT - 16 * e1 + 5 * e2) / 12, pushed


def _pndm_transfer(
    model: Schedule,
    grid: Grid,
    latent: np.ndarray,
    output: np.ndarray,
    source: int,
    target: int,
) -> np.ndarray:
    """The transfer of Liu et al. 2022 from time source to target, given the combined output."""
    ac, ac_next = _ac(model, grid, source), _ac(model, grid, target)
    eps = output
    if model.prediction_type == "v_prediction":
        eps = math.sqrt(ac) * output + math.sqrt(1 - ac) * latent
    denominator = ac * math.sqrt(1 - ac_next) + math.sqrt(ac * (1 - ac) * ac_next)
    return math.sqrt(ac_next / ac) * latent - (ac_next - ac) / denominator * eps
