# SPDX-License-Identifier: MIT
"""The scheduler classes of diffusers that have a sampler here, with the defaults of their keys.

Written from the constructors of diffusers 0.42. A key is listed with a class when it changes what
that class does, also where only one of its values is implemented. Below: what diffusers' pipelines
correct in these configs, which values each key may have, and the samplers' names.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxgen import fields
from jaxgen.diffusion import samplers, schedule, sigmas
from jaxgen.diffusion.table import Table

MOST_TRAIN_STEPS = 100_000  # a config file may ask for any number; no model has more


class SchedulerClass(NamedTuple):
    """One diffusers class: its sampler, how it makes a grid, and the defaults of its keys."""

    sampler: Callable[..., Table]
    grid: Callable[..., sigmas.Grid]
    defaults: Mapping[str, Any]


_LINEAR_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_LATENT_BETAS = {**_LINEAR_BETAS, **schedule.STABLE_DIFFUSION_BETAS}
_K_BETAS = {**_LATENT_BETAS, "beta_schedule": "linear"}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_LEVELS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_NO_FLOW = {"use_flow_sigmas": False, "use_dynamic_shifting": False, "thresholding": False}
_DPM = {
    **_LINEAR_BETAS,
    **_LEVELS,
    **_NO_FLOW,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
}
_DISTILLED = {
    **_LATENT_BETAS,
    **_ZERO_SNR,
    "original_inference_steps": 50,
    "clip_sample": False,
    "thresholding": False,
}

_KDPM2_GRID = functools.partial(sigmas.euler_grid, integer_karras=True)
_MULTISTEP_GRID = functools.partial(sigmas.solver_grid, fractional_cosine=True)
_UNIPC_GRID = functools.partial(sigmas.solver_grid, repeat_last=True)
_DEIS_GRID = functools.partial(_UNIPC_GRID, final_sigma="sigma_min")

# models of EDM have no betas; those here are not used
_EDM = {
    **_LINEAR_BETAS, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5,
    "sigma_schedule": "karras", "rho": 7.0, "final_sigmas_type": "zero",
}  # fmt: skip

CLASSES: Mapping[str, SchedulerClass] = {
    "DDIMScheduler": SchedulerClass(
        samplers.ddim, sigmas.timestep_grid,
        {
            **_LINEAR_BETAS, **_LEADING, **_ZERO_SNR,
            "clip_sample": True, "thresholding": False, "set_alpha_to_one": True,
        },
    ),
    "DDPMScheduler": SchedulerClass(
        samplers.ddpm, sigmas.timestep_grid,
        {
            **_LINEAR_BETAS, **_LEADING, **_ZERO_SNR,
            "clip_sample": True, "thresholding": False, "variance_type": "fixed_small",
        },
    ),
    "PNDMScheduler": SchedulerClass(
        samplers.pndm, sigmas.timestep_grid,
        {**_LINEAR_BETAS, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    ),
    "LMSDiscreteScheduler": SchedulerClass(
        samplers.lms, sigmas.euler_grid, {**_LINEAR_BETAS, **_LINSPACE, **_LEVELS}
    ),
    "EulerDiscreteScheduler": SchedulerClass(
        samplers.euler, sigmas.euler_grid,
        {
            **_LINEAR_BETAS, **_LINSPACE, **_LEVELS, **_ZERO_SNR,
            "interpolation_type": "linear", "sigma_min": None, "sigma_max": None,
            "timestep_type": "discrete", "final_sigmas_type": "zero",
        },
    ),
    "EulerAncestralDiscreteScheduler": SchedulerClass(
        samplers.euler_ancestral, sigmas.euler_grid, {**_LINEAR_BETAS, **_LINSPACE, **_ZERO_SNR}
    ),
    "HeunDiscreteScheduler": SchedulerClass(
        samplers.heun, sigmas.euler_grid, {**_K_BETAS, **_LINSPACE, **_LEVELS, "clip_sample": False}
    ),
    "KDPM2DiscreteScheduler": SchedulerClass(
        samplers.dpm2, _KDPM2_GRID, {**_K_BETAS, **_LINSPACE, **_LEVELS}
    ),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(
        samplers.dpm2_ancestral, _KDPM2_GRID, {**_K_BETAS, **_LINSPACE, **_LEVELS}
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        samplers.dpmpp_2s, sigmas.solver_grid, {**_DPM, "lower_order_final": False}
    ),
    "DPMSolverMultistepScheduler": SchedulerClass(
        samplers.dpm_multistep, _MULTISTEP_GRID,
        {
            **_DPM, **_LINSPACE, **_ZERO_SNR,
            "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False,
        },
    ),
    "DEISMultistepScheduler": SchedulerClass(
        samplers.deis, _DEIS_GRID,
        {
            **_LINEAR_BETAS, **_LINSPACE, **_LEVELS, **_NO_FLOW,
            "solver_order": 2, "lower_order_final": True,
        },
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        samplers.unipc, _UNIPC_GRID,
        {
            **_LINEAR_BETAS, **_LINSPACE, **_LEVELS, **_ZERO_SNR, **_NO_FLOW,
            "solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True,
            "disable_corrector": [], "solver_p": None, "sigma_min": None, "sigma_max": None,
            "final_sigmas_type": "zero", "shift_terminal": None,
        },
    ),
    "LCMScheduler": SchedulerClass(
        samplers.lcm, sigmas.distilled_grid, {**_DISTILLED, "timestep_scaling": 10.0}
    ),
    "TCDScheduler": SchedulerClass(samplers.tcd, sigmas.distilled_grid, _DISTILLED),
    "EDMEulerScheduler": SchedulerClass(
        samplers.euler, functools.partial(sigmas.edm_grid, repeat_last=True), _EDM
    ),
    "EDMDPMSolverMultistepScheduler": SchedulerClass(
        samplers.dpm_multistep, sigmas.edm_grid,
        {
            **_EDM, "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
            "lower_order_final": True, "euler_at_final": False, "thresholding": False,
        },
    ),
}  # fmt: skip

_FLAG = fields.optional(fields.flag(False))  # older files leave flags null
_OFF = fields.choice(False, False, None)  # options that are not implemented
_NULL = fields.choice(None, None)
_BETA = fields.number(None, 1e-9, 1 - 1e-9)
_SIGMA = fields.optional(fields.number(None, 1e-6, 1e6))
_MINUS_INFINITY = fields.choice(-math.inf, -math.inf, "-Infinity", "-inf")
# what a key may be, for every class that has it; the defaults are those of CLASSES
FIELDS: Mapping[str, fields.Field] = {
    "num_train_timesteps": fields.integer(None, 1, MOST_TRAIN_STEPS),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": fields.choice(None, *schedule.BETA_SCHEDULES),
    "trained_betas": fields.optional(
        fields.items(None, fields.number(None, 0, 1), most=MOST_TRAIN_STEPS)
    ),
    "prediction_type": fields.choice(None, *schedule.PREDICTION_TYPES),
    "rescale_betas_zero_snr": _FLAG,
    "timestep_spacing": fields.choice(None, *schedule.SPACINGS),
    "steps_offset": fields.integer(None, 0, MOST_TRAIN_STEPS),
    "use_karras_sigmas": _FLAG,
    "use_exponential_sigmas": _FLAG,
    "use_beta_sigmas": _FLAG,
    "sigma_min": _SIGMA,
    "sigma_max": _SIGMA,
    "sigma_data": fields.number(None, 1e-6, 1e6),
    "sigma_schedule": fields.choice(None, "karras", "exponential"),
    "rho": fields.choice(7.0, 7.0),
    "final_sigmas_type": fields.choice(None, "zero", "sigma_min"),
    "interpolation_type": fields.choice(None, "linear", "log_linear"),
    "timestep_type": fields.choice(None, "discrete", "continuous"),
    "algorithm_type": fields.choice(
        None, "dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"
    ),
    "solver_type": fields.choice(None, "midpoint", "heun", "bh1", "bh2"),
    "solver_order": fields.integer(None, 1, 3),
    "lower_order_final": _FLAG,
    "euler_at_final": _FLAG,
    "predict_x0": _FLAG,
    "disable_corrector": fields.items(None, fields.integer(None, 0, MOST_TRAIN_STEPS), 0, 10_000),
    "set_alpha_to_one": _FLAG,
    "skip_prk_steps": _FLAG,
    "variance_type": fields.choice(None, None, "fixed_small", "fixed_small_log", "fixed_large"),
    "lambda_min_clipped": fields.either(None, _MINUS_INFINITY, fields.number(None, -1e3, 1e3)),
    "original_inference_steps": fields.integer(None, 1, MOST_TRAIN_STEPS),
    "timestep_scaling": fields.number(None, 1e-3, 1e6),
    "clip_sample": _OFF,
    "thresholding": _OFF,
    "use_flow_sigmas": _OFF,
    "use_dynamic_shifting": _OFF,
    "use_lu_lambdas": _OFF,
    "solver_p": _NULL,
    "shift_terminal": _NULL,
}
# keys of these classes that only qualify an option which is refused above
QUALIFIERS = frozenset({
    "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift",
    "time_shift_type", "quantization_config",
})  # fmt: skip


def _one_kind_of_levels(values: Mapping[str, Any]) -> bool:
    return sum(bool(values.get(f"use_{kind}_sigmas")) for kind in sigmas.LEVELS) <= 1


RULES = (
    fields.Rule(
        _one_kind_of_levels,
        "use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas exclude each other; set at "
        "most one of them to true",
    ),
    fields.Rule(
        lambda v: v["trained_betas"] is None or len(v["trained_betas"]) == v["num_train_timesteps"],
        "trained_betas must be a list of num_train_timesteps numbers",
    ),
    fields.Rule(
        lambda v: v.get("steps_offset", 0) < v["num_train_timesteps"],
        "steps_offset must be less than num_train_timesteps",
    ),
    fields.Rule(
        lambda v: (
            v.get("sigma_min") is None
            or v.get("sigma_max") is None
            or v["sigma_min"] <= v["sigma_max"]
        ),
        "sigma_min must not be above sigma_max",
    ),
    fields.Rule(
        lambda v: "sigma_data" not in v or None not in (v["sigma_min"], v["sigma_max"]),
        "sigma_min and sigma_max must be numbers in models of EDM",
    ),
    fields.Rule(
        lambda v: v.get("interpolation_type") != "log_linear" or v["timestep_type"] == "discrete",
        "interpolation_type 'log_linear' and timestep_type 'continuous' exclude each other",
    ),
)

# What diffusers' pipelines put in place of other values when they are built, those of absent keys
# among them: old checkpoints lack these keys, and the classes' defaults are not what the models
# were made for. The pipelines of SDXL and of latent consistency models correct nothing.
_TEXT_AND_IMAGE = {"steps_offset": 1, "clip_sample": False}
_INPAINTING = {"steps_offset": 1, "skip_prk_steps": True}
CORRECTIONS: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": _TEXT_AND_IMAGE,
    "StableDiffusionImg2ImgPipeline": _TEXT_AND_IMAGE,
    "StableDiffusionInpaintPipeline": _INPAINTING,
    "StableDiffusionInpaintPipelineLegacy": _TEXT_AND_IMAGE,
    "StableDiffusionDiffEditPipeline": _INPAINTING,
    "StableDiffusionPAGPipeline": _TEXT_AND_IMAGE,
    "StableDiffusionPAGImg2ImgPipeline": _TEXT_AND_IMAGE,
    "StableDiffusionPAGInpaintPipeline": _TEXT_AND_IMAGE,
    "StableDiffusionPipelineSafe": _TEXT_AND_IMAGE,
    "LEditsPPPipelineStableDiffusion": _TEXT_AND_IMAGE,
}

# the samplers' names: a class, and what the name fixes in it
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2s": (
        "DPMSolverSinglestepScheduler", {"solver_order": 2, "algorithm_type": "dpmsolver++"}
    ),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "dpmsolver++"}
    ),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}
    ),
    "dpmpp_3m": (
        "DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "dpmsolver++"}
    ),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}  # fmt: skip
# those whose set_timesteps takes timesteps in diffusers
WITH_TIMES = (
    "DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LCMScheduler",
    "TCDScheduler", "DPMSolverSinglestepScheduler", "DPMSolverMultistepScheduler",
)  # fmt: skip
# the classes of these samplers for models of EDM
OF_EDM = {
    "EulerDiscreteScheduler": "EDMEulerScheduler",
    "DPMSolverMultistepScheduler": "EDMDPMSolverMultistepScheduler",
}
