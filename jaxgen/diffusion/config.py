# SPDX-License-Identifier: MIT
"""From a checkpoint's scheduler_config.json to a sampler, with diffusers' defaults per class.

An absent key means what the class's own default means; a value that is not implemented is an error
that names it. Keys that the class does not know are passed over, as diffusers does: those of other
classes are what lets one checkpoint be run with another sampler, and `unknown_keys` lists the rest.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxgen import fields
from jaxgen.diffusion import names, schedule, sigmas
from jaxgen.diffusion.scheduler_classes import (
    CLASSES,
    CORRECTIONS,
    FIELDS,
    QUALIFIERS,
    RULES,
    SAMPLERS,
    WITH_TIMES,
)
from jaxgen.diffusion.table import Table

OWN_LEVELS = "schedule"  # says that the levels are those of the schedule, whatever the config says

__all__ = ["SAMPLERS", "Sampler", "from_config", "unknown_keys"]


class Sampler(Protocol):
    """A configured sampler: the table of a run, of which start_step steps are skipped."""

    def __call__(self, num_steps: int, start_step: int = 0) -> Table: ...


# config key -> parameter of the grid or the sampler, where the two are called differently
_PARAMETERS = {
    "timestep_spacing": "spacing",
    "variance_type": "variance",
    "final_sigmas_type": "final_sigma",
    "solver_order": "order",
    "algorithm_type": "algorithm",
    "original_inference_steps": "original_steps",
}


# keys that say how a model was trained; the others are about sampling
_TRAINING = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr", "prediction_type",
)  # fmt: skip


def from_config(
    scheduler_config: Mapping[str, Any],
    name: str | None = None,
    eta: float | None = None,
    *,
    spacing: str | None = None,
    levels: str | None = None,
    times: Sequence[int] | None = None,
    pipeline: str | None = None,
) -> Sampler:
    """The sampler that a parsed scheduler_config.json describes, or the one called `name`.

    name: as in `names.sampler`; configured as diffusers' `Class.from_config(scheduler_config)`
    would be, from the keys that both classes have. None is the config's own class.
    eta: for ddim and tcd, the amount of fresh noise from 0 to 1; None is diffusers' default, 0 for
    ddim and 0.3 for tcd. spacing: "leading", "linspace" or "trailing". levels: "karras",
    "exponential", "beta", or "schedule" for those of training; None leaves both to the config.
    times: the training timesteps of the steps, falling, in place of a spacing (diffusers' argument
    `timesteps`); the sampler then runs as many steps.
    pipeline: the diffusers pipeline whose corrections of the config apply (CORRECTIONS).
    Raises ValueError that names an unknown class or sampler, an option that the sampler does not
    have, or a value that is not implemented.
    """
    keys = _stated(scheduler_config)
    own = keys.get("_class_name")
    class_name, fixed, named_levels = names.scheduler_class(own, name)
    scheduler = CLASSES[class_name]
    title = class_name if name is None else f"{name} ({class_name})"
    values = {**scheduler.defaults, **{k: v for k, v in keys.items() if k in scheduler.defaults}}
    if "clip_sample" not in keys and own != class_name and "clip_sample" in values:
        values["clip_sample"] = False  # a default for pixels, which latent models never use
    values.update(fixed)
    values = {key: _translated(class_name, key, value) for key, value in values.items()}
    values = _corrected(values, pipeline)
    values = _with_spacing(values, spacing, title)
    values = _with_levels(values, _agreed(levels, named_levels, name), title)
    values = fields.check(
        {key: FIELDS[key] for key in values}, values, f"the scheduler config of {title}", RULES
    )
    model = _model(values)
    grid_options = _options(scheduler.grid, values)
    if times is not None:
        grid_options["times"] = _times(times, model, class_name, values, spacing, title)
    sampler_options = _options(scheduler.sampler, values)
    sampler_options |= _noise_option(scheduler.sampler, eta, title)

    def sampler(num_steps: int, start_step: int = 0) -> Table:
        if times is not None and num_steps != len(times):
            raise ValueError(f"{len(times)} times are for as many steps, not for {num_steps}")
        grid = scheduler.grid(model, num_steps, **grid_options)
        return scheduler.sampler(model, grid, start_step=start_step, **sampler_options)

    return sampler


def training_schedule(scheduler_config: Mapping[str, Any]) -> schedule.Schedule:
    """The noise levels and the prediction type that a scheduler's config says of training.

    Raises ValueError as `from_config` does, and for models of EDM, which have no betas.
    """
    keys = _stated(scheduler_config)
    class_name, _, _ = names.scheduler_class(keys.get("_class_name"), None)
    if class_name.startswith("EDM"):
        raise ValueError(
            f"the scheduler {class_name} is for models of EDM, whose noise levels are not those "
            "that this trains with; give a model of Stable Diffusion's"
        )
    defaults = {k: v for k, v in CLASSES[class_name].defaults.items() if k in _TRAINING}
    values = {**defaults, **{key: value for key, value in keys.items() if key in defaults}}
    title = f"the scheduler config of {class_name}"
    return _model(fields.check({key: FIELDS[key] for key in values}, values, title))


def unknown_keys(scheduler_config: Mapping[str, Any]) -> list[str]:
    """The keys of a config that no scheduler class here knows, which are passed over."""
    known = QUALIFIERS.union(*(scheduler.defaults for scheduler in CLASSES.values()))
    return [key for key in scheduler_config if key not in known and not key.startswith("_")]


def _stated(scheduler_config: Any) -> dict[str, Any]:
    """The keys that the config states for itself.

    diffusers records which values were only defaults; another class replaces them by its own.
    """
    if not isinstance(scheduler_config, Mapping):
        raise ValueError(
            f"a scheduler config is a mapping of keys to values, but this is a "
            f"{type(scheduler_config).__name__}; check scheduler_config.json"
        )
    defaulted = scheduler_config.get("_use_default_values")
    defaulted = defaulted if isinstance(defaulted, list | tuple) else ()
    stated = {key: value for key, value in scheduler_config.items() if key not in defaulted}
    own = stated.get("_class_name")
    if isinstance(own, str):  # Flax's classes, and those for many steps at once, do the same
        stated["_class_name"] = own.removeprefix("Flax").replace("ParallelScheduler", "Scheduler")
    return stated


def _translated(class_name: str, key: str, value: Any) -> Any:
    """Translates a value from another solver family's words into this class's."""
    if not isinstance(value, str | None):
        return value
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


def _corrected(values: dict[str, Any], pipeline: str | None) -> dict[str, Any]:
    """The values as they are inside this pipeline; those of a wrong kind stay, to be refused."""
    corrections = CORRECTIONS.get(pipeline or "", {})
    return values | {
        key: right
        for key, right in corrections.items()
        if key in values and type(values[key]) is type(right) and values[key] >= 0
    }


def _with_spacing(values: dict[str, Any], spacing: str | None, title: str) -> dict[str, Any]:
    if spacing is None:
        return values
    if spacing not in schedule.SPACINGS:
        raise ValueError(
            f"spacing is {fields.shown(spacing)}; known are {', '.join(schedule.SPACINGS)}"
        )
    if "timestep_spacing" not in values:
        raise _no_such_option("spacing", title, _samplers_with_key("timestep_spacing"))
    return values | {"timestep_spacing": spacing}


def _agreed(levels: str | None, named: str | None, name: str | None) -> str | None:
    if levels is not None and levels not in (*sigmas.LEVELS, OWN_LEVELS):
        known = ", ".join((*sigmas.LEVELS, OWN_LEVELS))
        raise ValueError(f"levels is {fields.shown(levels)}; known are {known}")
    if levels is not None and named is not None and levels != named:
        raise ValueError(
            f"the sampler {name} asks for levels {fields.shown(named)}, but levels is "
            f"{fields.shown(levels)}"
        )
    return levels or named


def _with_levels(values: dict[str, Any], levels: str | None, title: str) -> dict[str, Any]:
    if levels is None:
        return values
    if "use_karras_sigmas" not in values:
        if levels == OWN_LEVELS:
            return values
        raise _no_such_option("levels", title, _samplers_with_key("use_karras_sigmas"))
    return values | {f"use_{kind}_sigmas": kind == levels for kind in sigmas.LEVELS}


def _times(
    times: Sequence[int],
    model: schedule.Schedule,
    class_name: str,
    values: Mapping[str, Any],
    spacing: str | None,
    title: str,
) -> np.ndarray:
    """Checks the timesteps that a caller chose for a class with these values, int64 [N]."""
    if class_name not in WITH_TIMES:
        takers = [name for name, (cls, _) in SAMPLERS.items() if cls in WITH_TIMES]
        raise _no_such_option("times", title, takers)
    if spacing is not None:
        raise ValueError("times and spacing are both given; leave one of them out")
    placing = [kind for kind in sigmas.LEVELS if values.get(f"use_{kind}_sigmas")]
    if placing:
        raise ValueError(
            f"times cannot be chosen where levels are placed ({placing[0]}); leave them out, or "
            f"use levels {OWN_LEVELS!r}"
        )
    if values.get("timestep_type") == "continuous" and model.prediction_type == "v_prediction":
        raise ValueError("times are for models of discrete ones, not of timestep_type 'continuous'")
    return schedule.chosen_timesteps(model, times)


def _noise_option(sampler: Callable, eta: float | None, title: str) -> dict[str, float]:
    if eta is None:
        return {}
    if not _accepts(sampler, "eta"):
        takers = [
            name for name, (cls, _) in SAMPLERS.items() if _accepts(CLASSES[cls].sampler, "eta")
        ]
        raise _no_such_option("eta", title, takers)
    if not fields.is_number(eta) or not 0 <= eta <= 1:
        raise ValueError(f"eta is {fields.shown(eta)}; it must lie between 0 and 1")
    return {"eta": eta}


def _no_such_option(option: str, title: str, takers: list[str]) -> ValueError:
    return ValueError(f"{title} has no {option}; leave it out, or use one of {', '.join(takers)}")


def _samplers_with_key(key: str) -> list[str]:
    return [name for name, (cls, _) in SAMPLERS.items() if key in CLASSES[cls].defaults]


def _model(values: Mapping[str, Any]) -> schedule.Schedule:
    return schedule.noise_schedule(
        num_train_steps=values["num_train_timesteps"],
        beta_start=values["beta_start"],
        beta_end=values["beta_end"],
        beta_schedule=values["beta_schedule"],
        trained_betas=values["trained_betas"],
        zero_terminal_snr=bool(values.get("rescale_betas_zero_snr", False)),
        prediction_type=values["prediction_type"],
    )


def _options(function: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a sampler, or of its grid, that the config decides."""
    options = {_PARAMETERS.get(key, key): value for key, value in values.items()}
    options["levels"] = next(
        (kind for kind in sigmas.LEVELS if values.get(f"use_{kind}_sigmas")), None
    )
    options["lambda_min_clipped"] = float(values.get("lambda_min_clipped", -math.inf))
    if "set_alpha_to_one" in values:
        options["final_sigma"] = "zero" if values["set_alpha_to_one"] else "sigma_min"
    options["log_linear"] = values.get("interpolation_type") == "log_linear"
    options["continuous_time"] = values.get("timestep_type") == "continuous"
    return {key: value for key, value in options.items() if _accepts(function, key)}


@functools.cache  # all of them are in CLASSES
def _accepts(function: Callable, parameter: str) -> bool:
    return parameter in inspect.signature(function).parameters
