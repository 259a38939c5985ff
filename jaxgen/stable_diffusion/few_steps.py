# SPDX-License-Identifier: MIT
"""Hints for models that were distilled to need few steps, and for runs that cannot become pictures.

Such models (Turbo, Lightning, LCM, Hyper, DMD2), and LoRA files that make a model one, are files
like any other, and with the settings of the models they come from they give burnt or noisy pictures
without any error.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from jaxgen.diffusion import names
from jaxgen.diffusion.scheduler_classes import SAMPLERS
from jaxgen.stable_diffusion.request import BatchRequest, Request
from jaxgen.weights.diffusers import Checkpoint

# word in a model's name -> what its makers run it with
ADVICE = {
    "turbo": "1 to 4 steps (derived models up to 8), guidance scale 1 to 2, spacing 'trailing', "
    "and if it is Stability's own 512 x 512 pixels",
    "lightning": "2 to 8 steps, as its name says, sampler 'euler', spacing 'trailing', guidance "
    "scale 1 to 2",
    "hyper": "1 to 8 steps, as its name says, sampler 'ddim', spacing 'trailing', guidance scale 1",
    "lcm": "4 to 8 steps, sampler 'lcm', guidance scale 1 to 2, or any where it is an input",
    "tcd": "4 to 8 steps, sampler 'tcd', guidance scale 1",
    "dmd": "4 steps, sampler 'lcm', guidance scale 1",
}
# of whole UNets of one step, which their makers run in another way
ONE_STEP = {
    "lightning": "1 step, sampler 'euler', spacing 'trailing', guidance scale 1, and loaded with "
    "prediction_type 'sample'",
    "hyper": "1 step, sampler 'lcm', times [800], guidance scale 1",
}
SCHEDULERS = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}
# kind -> the only samplers that fit, and those that fit no kind: they begin with older outputs
FIT = {"lcm": ("lcm",), "tcd": ("tcd",)}
UNFIT = ("pndm", "lms")
NUM_STEPS, GUIDANCE_SCALE = 50, 7.5  # of all other models, as in diffusers
MOST_STEPS = 12  # of any distilled model
MOST_GUIDANCE = 3.0
# A word of a name: DreamShaperXL_v2TurboDpmppSDE, sdxl-turbo, SDXLTurbo, LCM_Dreamshaper_v7
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

STEPS = re.compile(r"(?<!\d)(12|[1248])[ _-]?steps?", re.IGNORECASE)
# Lightning, hyper and turbo are common words of styles, too, and styles are drawn for "hyper_sdxl".
# All published files that distil a model have their number of steps in their names, but for Turbo's
TURBO = re.compile(r"(sd|xl)[ _-]?turbo[ _-]?lora", re.IGNORECASE)


class Distilled(NamedTuple):
    """What a model, or the LoRA that is merged into it, was distilled for."""

    kind: str | None = None  # a key of ADVICE; None is no distilled model
    num_steps: int = NUM_STEPS
    guidance_scale: float = GUIDANCE_SCALE
    takes_guidance: bool = False  # it is made for usual scales, as the CFG files of Hyper-SD
    adapter: str = ""  # the LoRA that says so; "" is the model itself

    @property
    def advice(self) -> str:
        """What its makers run it with; of a distilled model only."""
        text = ADVICE[str(self.kind)]
        if self.takes_guidance:
            return re.sub(r"guidance scale 1( to 2)?", "guidance scale 5 to 8", text)
        return ONE_STEP.get(str(self.kind), text) if self.is_one_step_unet else text

    @property
    def is_one_step_unet(self) -> bool:
        """Whether it is a UNet of one of ONE_STEP's kinds."""
        return self.kind in ONE_STEP and self.num_steps == 1 and not self.adapter


def of_checkpoint(checkpoint: Checkpoint) -> Distilled:
    """Tells what a checkpoint was distilled for, with the settings of calls that do not say them.

    Of distilled models these are 4 steps, or as many as the name says, without guidance; where the
    scale is an input of the UNet, 8.5, as its makers have it.
    """
    kind = kind_of(checkpoint)
    if kind is None:
        return Distilled()
    takes_scale = checkpoint.components["unet"].config.get("time_cond_proj_dim") is not None
    own = checkpoint.name, checkpoint.index.get("_name_or_path")
    return Distilled(kind, _num_steps(own), 8.5 if takes_scale else 1.0)


def of_adapters(adapters: Iterable[tuple[str, ...]]) -> Distilled | None:
    """Tells what the first LoRA with such a name was distilled for; None where there is none.

    adapters: of each, its names: the file's or folder's, and those that its metadata have.
    """
    for own in adapters:
        for name in own:
            kind = _kind_in(name)
            if kind in FIT or (kind and (STEPS.search(name) or TURBO.search(name))):
                guided = "cfg" in name.lower()
                scale = GUIDANCE_SCALE if guided else 1.0
                return Distilled(kind, _num_steps(own), scale, guided, own[0])
    return None


def kind_of(checkpoint: Checkpoint) -> str | None:
    """Names the kind of distilled model, a key of ADVICE, that a checkpoint seems to be.

    What decides is the name it was opened by and the one it says it came from, its scheduler, and
    whether its UNet takes the guidance scale as an input.
    """
    for name in (checkpoint.name, checkpoint.index.get("_name_or_path")):
        kind = _kind_in(name)
        if kind is not None:
            return kind
    if checkpoint.components["unet"].config.get("time_cond_proj_dim") is not None:
        return "lcm"
    return SCHEDULERS.get(str(checkpoint.scheduler.get("_class_name")))


def hint(
    distilled: Distilled, scheduler: Mapping[str, Any], request: Request, batch: BatchRequest
) -> str | None:
    """Says in one line why a run will not give good pictures, and what to do; None if it may.

    scheduler: the model's scheduler_config.json. Samplers that the caller has configured or
    computed are his own affair.
    """
    if not isinstance(request.sampler, str | None):
        return None
    kind = distilled.kind
    faults = [] if kind is None else _faults(request, batch, scheduler, distilled)
    of_edm = str(scheduler.get("_class_name")).startswith("EDM")  # times are no training times
    chosen = request.denoising_start or request.times is not None
    first = 1.0 if chosen or of_edm else _first_time(scheduler, batch)
    if first < (0.5 if kind is None else 0.9):
        faults.append(
            f"a first step at {first:.0%} of the training times, where the model expects less noise"
        )
    if not faults:
        return None
    if kind is None:
        return f"this run has {faults[0]}; use spacing 'trailing', or more steps"
    name = kind.upper() if len(kind) == 3 else kind.title()
    what = (
        f"{distilled.adapter} seems to make this a distilled model"
        if distilled.adapter
        else "this seems to be a distilled model"
    )
    return f"{what} ({name}), made for {distilled.advice}; this run has {' and '.join(faults)}"


def _faults(
    request: Request, batch: BatchRequest, scheduler: Mapping[str, Any], distilled: Distilled
) -> list[str]:
    kind, faults, scale = distilled.kind, [], float(batch.guidance_scale.max())
    if request.num_steps > MOST_STEPS:  # a sampler by name; `hint` has passed over a Table
        faults.append(f"{request.num_steps} steps")
    if batch.guided and scale > MOST_GUIDANCE and not distilled.takes_guidance:
        faults.append(f"guidance scale {scale:g}")
    sampler, one_step = _sampler(request, scheduler), distilled.is_one_step_unet
    fit = ("lcm",) if one_step and kind == "hyper" else FIT.get(str(kind), (sampler,))
    if sampler in UNFIT or (sampler and sampler not in fit):
        faults.append(f"sampler {sampler!r}")
    # a single file of SD 2 is taken for a v model, as diffusers does; SD-Turbo is none
    is_xl = batch.time_ids is not None
    if kind == "turbo" and not is_xl and scheduler.get("prediction_type") == "v_prediction":
        faults.append("prediction_type 'v_prediction', where SD-Turbo needs 'epsilon'")
    return faults + (_faults_of_one_step(request, scheduler, kind) if one_step else [])


def _faults_of_one_step(
    request: Request, scheduler: Mapping[str, Any], kind: str | None
) -> list[str]:
    """Says what else a run of such a UNet has otherwise than its makers."""
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if kind == "lightning" and prediction_type != "sample":
        return [f"prediction_type {prediction_type!r}"]
    if kind == "hyper" and (request.times is None or list(request.times) != [800]):
        return ["other times"]
    return []


def _kind_in(name: Any) -> str | None:
    """Finds the word of ADVICE in a name; None where there is none."""
    words = WORD.findall(PurePath(name).name) if isinstance(name, str) else []
    plain = (re.sub("^(sdxl|sd|xl)(?=.)", "", word.lower()) for word in words)
    return next((word for word in plain if word in ADVICE), None)


def _num_steps(names: Iterable[Any]) -> int:
    """The number of steps that the names of a distilled model say, or 4."""
    counts = (STEPS.search(str(name)) for name in names)
    return next((int(match[1]) for match in counts if match), 4)


def _sampler(request: Request, scheduler: Mapping[str, Any]) -> str | None:
    """Names the sampler of a run: the call's, or the model's own; None for one without a name."""
    if request.sampler is not None:
        return names.sampler(request.sampler)[0]
    own = scheduler.get("_class_name")
    return next((name for name, (cls, _) in SAMPLERS.items() if cls == own), None)


def _first_time(scheduler: Mapping[str, Any], batch: BatchRequest) -> float:
    """Tells where in the training times, from 0 to 1, a run from pure noise begins."""
    if batch.from_image or batch.table.start_row == batch.table.num_rows:
        return 1.0
    last = scheduler.get("num_train_timesteps", 1000) - 1
    return float(batch.table.t[batch.table.start_row]) / max(last, 1)
