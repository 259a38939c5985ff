# SPDX-License-Identifier: MIT
"""The scheduler classes of diffusers that have a sampler here, with the defaults of their keys.

Written from the constructors of diffusers 0.42. A key is listed with a class when it changes what
that class does, also where only one of its values is implemented.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxgen.diffusion import samplers
from jaxgen.diffusion.table import Table


class SchedulerClass(NamedTuple):
    """One diffusers class: its factory, and the defaults of the keys that matter to it."""

    factory: Callable[..., Table]
    defaults: Mapping[str, Any]


_LINEAR_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_K_BETAS = {**_LINEAR_BETAS, "beta_start": 0.00085, "beta_end": 0.012}
_LATENT_BETAS = {**_K_BETAS, "beta_schedule": "scaled_linear"}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_RESPACING = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_NO_FLOW = {"use_flow_sigmas": False, "use_dynamic_shifting": False, "thresholding": False}
_DPM = {
    **_LINEAR_BETAS,
    **_RESPACING,
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

CLASSES: Mapping[str, SchedulerClass] = {
    "DDIMScheduler": SchedulerClass(
        samplers.ddim,
        {
            **_LINEAR_BETAS, **_LEADING, **_ZERO_SNR,
            "clip_sample": True, "thresholding": False, "set_alpha_to_one": True,
        },
    ),
    "DDPMScheduler": SchedulerClass(
        samplers.ddpm,
        {
            **_LINEAR_BETAS, **_LEADING, **_ZERO_SNR,
            "clip_sample": True, "thresholding": False, "variance_type": "fixed_small",
        },
    ),
    "PNDMScheduler": SchedulerClass(
        samplers.pndm,
        {**_LINEAR_BETAS, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    ),
    "LMSDiscreteScheduler": SchedulerClass(
        samplers.lms, {**_LINEAR_BETAS, **_LINSPACE, **_RESPACING}
    ),
    "EulerDiscreteScheduler": SchedulerClass(
        samplers.euler,
        {
            **_LINEAR_BETAS, **_LINSPACE, **_RESPACING, **_ZERO_SNR,
            "interpolation_type": "linear", "sigma_min": None, "sigma_max": None,
            "timestep_type": "discrete", "final_sigmas_type": "zero",
        },
    ),
    "EulerAncestralDiscreteScheduler": SchedulerClass(
        samplers.euler_ancestral, {**_LINEAR_BETAS, **_LINSPACE, **_ZERO_SNR}
    ),
    "HeunDiscreteScheduler": SchedulerClass(
        samplers.heun, {**_K_BETAS, **_LINSPACE, **_RESPACING, "clip_sample": False}
    ),
    "KDPM2DiscreteScheduler": SchedulerClass(
        samplers.dpm2, {**_K_BETAS, **_LINSPACE, **_RESPACING}
    ),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(
        samplers.dpm2_ancestral, {**_K_BETAS, **_LINSPACE, **_RESPACING}
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        samplers.dpmpp_2s, {**_DPM, "lower_order_final": False}
    ),
    "DPMSolverMultistepScheduler": SchedulerClass(
        samplers.dpm_multistep,
        {
            **_DPM, **_LINSPACE, **_ZERO_SNR,
            "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False,
        },
    ),
    "DEISMultistepScheduler": SchedulerClass(
        samplers.deis,
        {
            **_LINEAR_BETAS, **_LINSPACE, **_RESPACING, **_NO_FLOW,
            "solver_order": 2, "lower_order_final": True,
        },
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        samplers.unipc,
        {
            **_LINEAR_BETAS, **_LINSPACE, **_RESPACING, **_ZERO_SNR, **_NO_FLOW,
            "solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True,
            "disable_corrector": [], "solver_p": None, "sigma_min": None, "sigma_max": None,
            "final_sigmas_type": "zero", "shift_terminal": None,
        },
    ),
    "LCMScheduler": SchedulerClass(samplers.lcm, {**_DISTILLED, "timestep_scaling": 10.0}),
    "TCDScheduler": SchedulerClass(samplers.tcd, _DISTILLED),
}  # fmt: skip

# the names users know: a class, and what the name fixes in it
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
