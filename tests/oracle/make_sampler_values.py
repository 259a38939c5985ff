# SPDX-License-Identifier: MIT
"""Runs diffusers' schedulers on unit vectors and stores the linear maps that they are.

    python tests/oracle/make_sampler_values.py        # writes tests/data/samplers.npz

A sampler is linear in the first latent, in every model output and in every fresh noise. Given unit
vectors for these it returns its own coefficients, with no network. Each stored case is one JSON
config, the sampler's name and number of steps, the model times, the latent scales and the
coefficients of every latent of the run.
"""

import contextlib
import functools
import json
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import numpy as np
import torch

DATA = pathlib.Path(__file__).parent.parent / "data" / "samplers.npz"
STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
}
CLASS_OF = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "dpm2_ancestral": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "dpmpp_2s": (
        diffusers.DPMSolverSinglestepScheduler,
        {"solver_order": 2, "algorithm_type": "dpmsolver++"},
    ),
    "dpmpp_2m": (
        diffusers.DPMSolverMultistepScheduler,
        {"solver_order": 2, "algorithm_type": "dpmsolver++"},
    ),
    "dpmpp_2m_sde": (
        diffusers.DPMSolverMultistepScheduler,
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    ),
    "dpmpp_3m": (
        diffusers.DPMSolverMultistepScheduler,
        {"solver_order": 3, "algorithm_type": "dpmsolver++"},
    ),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
}


PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
)


class LinearMap(NamedTuple):
    """A run of R rows on D = 1 + 2 R unit vectors: first latent, outputs, noises."""

    t: np.ndarray  # [R]
    inputs: np.ndarray  # [R, D] what the model sees
    latents: np.ndarray  # [R, D] after each row
    noising: np.ndarray  # [R, 2] how diffusers noises a clean latent for each row
    init_noise_sigma: float


def scheduler(config: dict[str, Any], name: str | None = None) -> Any:
    """The diffusers scheduler of a config, or the one called `name` configured from it."""
    if name is None:
        cls, fixed = getattr(diffusers, config["_class_name"]), {}
    else:
        cls, fixed = CLASS_OF[name]
    own = cls.set_timesteps

    @functools.wraps(own)
    def few(self, num_steps, *args, **kwargs):
        """Constructors of the k-diffusion family set all 1000, which takes them 0.2 s."""
        return own(self, min(num_steps, 4), *args, **kwargs)

    with warnings.catch_warnings(), mock.patch.object(cls, "set_timesteps", few):
        warnings.simplefilter("ignore")
        return cls.from_config(config, **fixed)


def scheduler_of_pipeline(pipeline: str, config: dict[str, Any]) -> Any:
    """The scheduler of a config as a diffusers pipeline corrects it when it is built around it."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet"))
    if "XL" in pipeline:
        parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts |= {"requires_safety_checker": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every correction warns
        return getattr(diffusers, pipeline)(**parts, scheduler=scheduler(config)).scheduler


def linear_map(
    scheduler: Any,
    num_steps: int,
    start_step: int = 0,
    eta: float | None = None,
    times: Sequence[int] | None = None,
) -> LinearMap:
    """The coefficients of a run, with the scheduler's own tables promoted to float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if times is None:
            scheduler.set_timesteps(num_steps)
        else:
            scheduler.set_timesteps(timesteps=list(times))
        return _linear_map(scheduler, start_step, {} if eta is None else {"eta": eta})


def _linear_map(scheduler: Any, start_step: int, options: dict[str, float]) -> LinearMap:
    init_noise_sigma = float(scheduler.init_noise_sigma)
    for name, value in list(vars(scheduler).items()):
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and name != "timesteps":
            setattr(scheduler, name, value.double())
    begin = start_step * scheduler.order
    times = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    num_rows = len(times)
    units = torch.eye(1 + 2 * num_rows, dtype=torch.float64)[..., None, None, None]
    x, outputs, noises = units[0], units[1 : 1 + num_rows], units[1 + num_rows :]
    seen, latents, noising = [], [], []
    for i, t in enumerate(times):
        noising.append(_noising(scheduler, t))
        seen.append(scheduler.scale_model_input(x, t).flatten().numpy())
        with _fixed_noise(scheduler, noises[i]):
            x = scheduler.step(outputs[i], t, x, return_dict=False, **options)[0].double()
        latents.append(x.flatten().numpy())
    return LinearMap(
        times.double().numpy(), np.stack(seen), np.stack(latents), np.stack(noising),
        init_noise_sigma,
    )  # fmt: skip


def _noising(scheduler: Any, t: torch.Tensor) -> list[float]:
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    at = torch.atleast_1d(t)
    return [
        float(scheduler.add_noise(one, zero, at)[0, 0]),
        float(scheduler.add_noise(zero, one, at)[0, 0]),
    ]


@contextlib.contextmanager
def _fixed_noise(scheduler: Any, noise: torch.Tensor):
    module = sys.modules[type(scheduler).__module__]
    original = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *args, **kwargs: noise
    try:
        yield
    finally:
        if original is None:
            del module.randn_tensor
        else:
            module.randn_tensor = original


def stored_cases() -> list[dict[str, Any]]:
    """The cases that the default test suite compares: small, and each with something of its own."""
    cases = []
    for name in CLASS_OF:
        for spacing in ("leading", "linspace", "trailing"):
            for prediction_type in ("epsilon", "v_prediction", "sample"):
                config = {
                    **STABLE_DIFFUSION,
                    "timestep_spacing": spacing,
                    "prediction_type": prediction_type,
                }
                cases.append({"config": config, "name": name, "num_steps": 5})
        if name in ("lms", "euler", "heun", "dpm2", "dpm2_ancestral", "dpmpp_2m", "deis", "unipc"):
            for kind in ("karras", "exponential", "beta"):
                config = {**STABLE_DIFFUSION, f"use_{kind}_sigmas": True}
                cases.append({"config": config, "name": name, "num_steps": 5})
        if name in ("ddim", "ddpm", "euler", "euler_ancestral", "dpmpp_2m", "unipc", "lcm", "tcd"):
            config = {
                **STABLE_DIFFUSION,
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
            }
            cases.append({"config": config, "name": name, "num_steps": 5})
        cases.append({"config": STABLE_DIFFUSION, "name": name, "num_steps": 8, "start_step": 3})
        cases.append({"config": STABLE_DIFFUSION, "name": name, "num_steps": 17})
        without_offset = {**STABLE_DIFFUSION, "steps_offset": 0, "timestep_spacing": "leading"}
        cases.append({"config": without_offset, "name": name, "num_steps": 5})
    cases += option_cases()
    with_start = {**STABLE_DIFFUSION, "skip_prk_steps": False}
    cases.append({"config": with_start, "name": "pndm", "num_steps": 8})
    cases.append({"config": STABLE_DIFFUSION, "name": "ddim", "num_steps": 5, "eta": 0.7})
    cases.append({"config": STABLE_DIFFUSION, "name": "tcd", "num_steps": 5, "eta": 0.0})
    cases.append({"config": {"_class_name": "PNDMScheduler", **STABLE_DIFFUSION}, "num_steps": 6})
    return cases


def option_cases() -> list[dict[str, Any]]:
    """Options that only some classes have, each away from its default."""
    multistep, singlestep = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    unipc, euler = "UniPCMultistepScheduler", "EulerDiscreteScheduler"
    options = [
        (multistep, 14, {"solver_order": 3}),
        (multistep, 15, {"solver_order": 3}),
        (multistep, 15, {"solver_order": 3, "euler_at_final": True, **_ENDS_ABOVE_ZERO}),
        (multistep, 6, {"solver_order": 3, "lower_order_final": False, **_ENDS_ABOVE_ZERO}),
        (multistep, 6, {"solver_type": "heun"}),
        (multistep, 16, {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
        (multistep, 16, {"solver_order": 3, "algorithm_type": "dpmsolver", **_ENDS_ABOVE_ZERO}),
        (multistep, 6, {"algorithm_type": "sde-dpmsolver", **_ENDS_ABOVE_ZERO}),
        (singlestep, 6, {"solver_order": 3, "solver_type": "heun"}),
        (singlestep, 7, {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
        (singlestep, 8, {"solver_order": 3, "algorithm_type": "dpmsolver", **_ENDS_ABOVE_ZERO}),
        (singlestep, 6, {"solver_order": 2, "lower_order_final": False, **_ENDS_ABOVE_ZERO}),
        ("DEISMultistepScheduler", 14, {"solver_order": 3}),
        ("DEISMultistepScheduler", 15, {"solver_order": 3}),
        (unipc, 6, {"solver_order": 3, "disable_corrector": [0, 2]}),
        (unipc, 6, {"solver_order": 3, "solver_type": "bh1", **_ENDS_ABOVE_ZERO}),
        (unipc, 6, {"solver_order": 2, "predict_x0": False, **_ENDS_ABOVE_ZERO}),
        (euler, 6, {"interpolation_type": "log_linear"}),
        (euler, 6, {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        (euler, 6, {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0}),
        (euler, 6, _ENDS_ABOVE_ZERO),
        (unipc, 6, {"use_karras_sigmas": True, "sigma_min": 0.05, **_ENDS_ABOVE_ZERO}),
        ("DDPMScheduler", 6, {"variance_type": "fixed_large"}),
        ("DDPMScheduler", 6, {"variance_type": "fixed_large", "steps_offset": 0}),
        ("LCMScheduler", 4, {"original_inference_steps": 30, "timestep_scaling": 5.0}),
    ]
    return [
        {"config": {"_class_name": cls, **STABLE_DIFFUSION, **changed}, "num_steps": num_steps}
        for cls, num_steps, changed in options
    ]


def corrected_cases() -> list[dict[str, Any]]:
    """Configs of old checkpoints, inside the pipelines that correct them."""
    bare = {k: v for k, v in STABLE_DIFFUSION.items() if k not in ("steps_offset", "clip_sample")}
    changes = ({}, {"steps_offset": 0}, {"steps_offset": 2}, {"skip_prk_steps": False})
    return [
        {
            "config": {"_class_name": cls, "timestep_spacing": "leading", **bare, **change},
            "pipeline": pipeline,
            "num_steps": 6,
        }
        for pipeline in PIPELINES
        for cls in ("PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler")
        for change in changes
        # these two leave clip_sample as it is, and jaxgen refuses to clip
        if cls != "DDIMScheduler" or pipeline in PIPELINES[:2]
    ]


def timed_cases() -> list[dict[str, Any]]:
    """Times that the caller chooses: one below the highest, and uneven ones."""
    return [
        {"config": STABLE_DIFFUSION, "name": name, "num_steps": len(times), "times": times}
        for name in TIMED
        for times in ([800], [999, 850, 736, 645, 545])
    ]


def clipped_cases() -> list[dict[str, Any]]:
    """lambda_min_clipped: what diffusers itself writes, and values that leave timesteps out."""
    return [
        {
            "config": {
                "_class_name": "DPMSolverMultistepScheduler",
                **STABLE_DIFFUSION,
                "beta_schedule": "squaredcos_cap_v2",
                "timestep_spacing": spacing,
                "lambda_min_clipped": clip,
            },
            "num_steps": 6,
        }
        for spacing in ("leading", "linspace", "trailing")
        for clip in (-float("inf"), -5.1, 0.5)
    ]


# the samplers whose classes take timesteps of the caller's
TIMED = ("ddpm", "euler", "heun", "lcm", "tcd", "dpmpp_2s", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m")
_ENDS_ABOVE_ZERO = {"final_sigmas_type": "sigma_min"}


def main() -> None:
    arrays = {}
    kept = []
    for case in [*stored_cases(), *corrected_cases(), *clipped_cases(), *timed_cases()]:
        try:
            if "pipeline" in case:
                made = scheduler_of_pipeline(case["pipeline"], case["config"])
            else:
                made = scheduler(case["config"], case.get("name"))
            options = [case.get(name) for name in ("eta", "times")]
            found = linear_map(made, case["num_steps"], case.get("start_step", 0), *options)
        except (NotImplementedError, ValueError):
            continue  # diffusers refuses the combination
        number = len(kept)
        kept.append(case)
        arrays[f"t_{number}"] = found.t
        arrays[f"inputs_{number}"] = found.inputs[-1].astype(np.float32)
        arrays[f"latents_{number}"] = found.latents[-1]
        arrays[f"noising_{number}"] = found.noising.astype(np.float32)
        arrays[f"init_{number}"] = np.float64(found.init_noise_sigma)
    arrays["cases"] = np.frombuffer(json.dumps(kept).encode(), np.uint8)
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, **arrays)
    size = DATA.stat().st_size / 1024
    print(f"{len(kept)} cases, {size:.0f} KiB, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
