# SPDX-License-Identifier: MIT
"""From a checkpoint's scheduler_config.json to a sampler, with diffusers' defaults per class.

An absent key means what the class's own default means; a value that is not implemented is an error
that names it. Keys of other scheduler classes are passed over, as diffusers does: they are what
lets one checkpoint be run with another sampler.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, Protocol

from jaxgen.diffusion import schedule
from jaxgen.diffusion.scheduler_classes import CLASSES, SAMPLERS
from jaxgen.diffusion.table import Table

MOST_TRAIN_STEPS = 100_000  # a config file may ask for any number; no model has more


class Sampler(Protocol):
    """A configured sampler: the table of a run, of which start_step steps are skipped."""

    def __call__(self, num_steps: int, start_step: int = 0) -> Table: ...


# the values that are implemented, of keys that have few
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "prediction_type": schedule.PREDICTION_TYPES,
    "timestep_spacing": schedule.SPACINGS,
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
    "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
    "solver_type": ("midpoint", "heun", "bh1", "bh2"),
    "solver_order": (1, 2, 3),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large"),
    "lambda_min_clipped": (-math.inf, "-Infinity", "-inf"),
    "clip_sample": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "use_lu_lambdas": (False,),
    "solver_p": (None,),
    "shift_terminal": (None,),
}
# keys that only qualify an option which is refused above, or that no sampler here reads
_PASSIVE = frozenset({
    "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift",
    "time_shift_type", "timestep_scaling", "original_inference_steps", "noise_sampler_seed",
})  # fmt: skip
# config key -> option of the factory, where the class and the factory both have it
_OPTIONS = {
    "timestep_spacing": "spacing",
    "steps_offset": "steps_offset",
    "set_alpha_to_one": "set_alpha_to_one",
    "skip_prk_steps": "skip_prk_steps",
    "variance_type": "variance",
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "final_sigmas_type": "final_sigma",
    "solver_order": "order",
    "solver_type": "solver_type",
    "algorithm_type": "algorithm",
    "lower_order_final": "lower_order_final",
    "euler_at_final": "euler_at_final",
    "predict_x0": "predict_x0",
    "disable_corrector": "disable_corrector",
    "original_inference_steps": "original_steps",
    "timestep_scaling": "timestep_scaling",
}


def from_config(
    scheduler_config: Mapping[str, Any], name: str | None = None, eta: float | None = None
) -> Sampler:
    """The sampler that a parsed scheduler_config.json describes, or the one called `name`.

    A name (`SAMPLERS`) is configured as diffusers' `Class.from_config(scheduler_config)` would be:
    from the keys both classes share. eta: for ddim and tcd, the amount of fresh noise; None is
    diffusers' default, 0 for ddim and 0.3 for tcd.
    Raises ValueError that names an unknown class or sampler, or a value that is not implemented.
    """
    given = _given(scheduler_config)
    own = given.get("_class_name")
    class_name, fixed = _target(own, name)
    factory, defaults = CLASSES[class_name]
    values = {key: given.get(key, default) for key, default in defaults.items()}
    if "clip_sample" not in given and own != class_name and "clip_sample" in values:
        values["clip_sample"] = False  # a default for pixels, which latent models never use
    values.update(fixed)
    values = {key: _translated(class_name, key, value) for key, value in values.items()}
    _check(class_name, values, defaults, given)

    model = schedule.noise_schedule(
        num_train_steps=values["num_train_timesteps"],
        beta_start=values["beta_start"],
        beta_end=values["beta_end"],
        beta_schedule=values["beta_schedule"],
        trained_betas=values["trained_betas"],
        zero_terminal_snr=bool(values.get("rescale_betas_zero_snr", False)),
        prediction_type=values["prediction_type"],
    )
    options = _options(factory, values, eta)

    def sampler(num_steps: int, start_step: int = 0) -> Table:
        return factory(model, num_steps, start_step=start_step, **options)

    return sampler


def _given(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(scheduler_config, Mapping):
        raise ValueError(
            f"a scheduler config is a mapping of keys to values, but this is a "
            f"{type(scheduler_config).__name__}; check scheduler_config.json"
        )
    # diffusers records which values were only defaults; another class replaces them by its own
    defaulted = scheduler_config.get("_use_default_values") or ()
    return {key: value for key, value in scheduler_config.items() if key not in defaulted}


def _target(own: Any, name: str | None) -> tuple[str, Mapping[str, Any]]:
    """(class, what the name fixes in it)."""
    if name is not None:
        if name not in SAMPLERS:
            raise ValueError(f"unknown sampler {name!r}; known are {', '.join(SAMPLERS)}")
        return SAMPLERS[name]
    if not isinstance(own, str) or own not in CLASSES:
        raise ValueError(
            f"scheduler class {own!r} is not implemented; known are {', '.join(CLASSES)}. Choose a "
            f"sampler by name instead: {', '.join(SAMPLERS)}"
        )
    return own, {}


def _translated(class_name: str, key: str, value: Any) -> Any:
    """A value in the words of this class: each solver family reads the others' as its own."""
    unipc = class_name == "UniPCMultistepScheduler"
    if key == "solver_type" and unipc and value in ("midpoint", "heun", "logrho"):
        return "bh2"
    if key == "solver_type" and not unipc and value in ("logrho", "bh1", "bh2"):
        return "midpoint"
    if key == "algorithm_type" and value == "deis":
        return "dpmsolver++"
    if key == "variance_type" and value is None and class_name == "DDPMScheduler":
        return "fixed_small"
    return value


def _check(
    class_name: str, values: dict[str, Any], defaults: Mapping[str, Any], given: dict[str, Any]
) -> None:
    for key, value in values.items():
        if key in _CHOICES:
            allowed = _CHOICES[key]
            # None stands for False in flags that older files leave null
            if value not in allowed and not (value is None and allowed == (False,)):
                _refuse(class_name, key, value, given, f"implemented: {_listed(allowed)}")
        else:
            _check_type(class_name, key, value, defaults[key], given)
    for key, value in given.items():
        known = key in values or key in _PASSIVE or key.startswith("_")
        known = known or any(key in other.defaults for other in CLASSES.values())
        if not known and value not in (None, False):
            _refuse(class_name, key, value, given, "no sampler here knows this key; remove it")
        if key in ("use_flow_sigmas", "use_dynamic_shifting") and value:
            _refuse(class_name, key, value, given, "models of the flow-matching kind do not fit")
    if len(_respacings(values)) > 1:
        raise ValueError(
            "use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas exclude each other; set "
            "at most one of them to true"
        )


def _check_type(class_name: str, key: str, value: Any, default: Any, given: dict[str, Any]) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool) or value is None, "true or false"
    elif key == "num_train_timesteps":
        fits = isinstance(value, int) and number and 1 <= value <= MOST_TRAIN_STEPS
        expected = f"an integer from 1 to {MOST_TRAIN_STEPS}"
    elif isinstance(default, int):
        fits, expected = isinstance(value, int) and number and abs(value) < 10**6, "a small integer"
    elif isinstance(default, float):
        fits, expected = number and math.isfinite(value), "a finite number"
    elif key == "trained_betas":
        fits = value is None or (
            isinstance(value, list | tuple)
            and len(value) == given.get("num_train_timesteps", 1000)
            and all(isinstance(beta, int | float) for beta in value)
        )
        expected = "a list of num_train_timesteps numbers"
    elif key == "disable_corrector":
        fits = isinstance(value, list | tuple) and all(isinstance(i, int) for i in value)
        expected = "a list of step numbers"
    else:  # sigma_min, sigma_max
        fits, expected = value is None or (number and 0 < value < math.inf), "a positive number"
    if not fits:
        _refuse(class_name, key, value, given, f"expected {expected}")


def _refuse(class_name: str, key: str, value: Any, given: dict[str, Any], advice: str) -> None:
    origin = "in the scheduler config" if key in given else f"the default of {class_name}"
    shown = f"{value!r:.80}"  # a file may hold anything, of any length
    raise ValueError(f"{key}={shown} ({origin}) is not implemented for {class_name}; {advice}")


def _listed(allowed: tuple[Any, ...]) -> str:
    return ", ".join(repr(value) for value in allowed)


def _options(factory: Any, values: dict[str, Any], eta: float | None) -> dict[str, Any]:
    accepted = inspect.signature(factory).parameters
    options = {
        option: values[key]
        for key, option in _OPTIONS.items()
        if key in values and option in accepted
    }
    for respacing in _respacings(values):
        options["respacing"] = respacing
    if "interpolation_type" in values:
        options["log_linear"] = values["interpolation_type"] == "log_linear"
        options["continuous_time"] = values["timestep_type"] == "continuous"
    if eta is not None and "eta" in accepted:
        options["eta"] = eta
    return options


def _respacings(values: dict[str, Any]) -> list[str]:
    kinds = ("karras", "exponential", "beta")
    return [kind for kind in kinds if values.get(f"use_{kind}_sigmas")]
