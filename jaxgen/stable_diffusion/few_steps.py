# SPDX-License-Identifier: MIT
"""Hints for models that were distilled to need few steps, and for runs that cannot become pictures.

Such models (Turbo, Lightning, LCM, Hyper) are files like any other, and with the settings of the
models they come from they give burnt or noisy pictures without any error.
"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

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
}
SCHEDULERS = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}
NUM_STEPS, GUIDANCE_SCALE = 50, 7.5  # of all other models, as in diffusers
MOST_STEPS = 12  # of any distilled model
MOST_GUIDANCE = 3.0
# A word of a name: DreamShaperXL_v2TurboDpmppSDE, sdxl-turbo, SDXLTurbo, LCM_Dreamshaper_v7
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def kind_of(checkpoint: Checkpoint) -> str | None:
    """Names the kind of distilled model, a key of ADVICE, that a checkpoint seems to be.

    What decides is the name it was opened by and the one it says it came from, its scheduler, and
    whether its UNet takes the guidance scale as an input.
    """
    names = (checkpoint.name, checkpoint.index.get("_name_or_path"))
    for name in names:
        words = WORD.findall(PurePath(name).name) if isinstance(name, str) else []
        for word in words:
            kind = re.sub("^(sdxl|sd|xl)(?=.)", "", word.lower())
            if kind in ADVICE:
                return kind
    if checkpoint.components["unet"].config.get("time_cond_proj_dim") is not None:
        return "lcm"
    return SCHEDULERS.get(str(checkpoint.scheduler.get("_class_name")))


def defaults(checkpoint: Checkpoint) -> tuple[int, float]:
    """Returns the number of steps and the guidance scale of calls that do not say them.

    Of distilled models 4 steps, or as many as the name says, without guidance; where the scale is
    an input of the UNet, 8.5, as its makers have it.
    """
    kind = kind_of(checkpoint)
    if kind is None:
        return NUM_STEPS, GUIDANCE_SCALE
    names = (checkpoint.name, checkpoint.index.get("_name_or_path"))
    counts = [re.search(r"(?<!\d)([1248])[ _-]?steps?", str(name).lower()) for name in names]
    count = next((int(match[1]) for match in counts if match), 4)
    takes_scale = checkpoint.components["unet"].config.get("time_cond_proj_dim") is not None
    return count, 8.5 if takes_scale else 1.0


def hint(
    kind: str | None, scheduler: Mapping[str, Any], request: Request, batch: BatchRequest
) -> str | None:
    """Says in one line why a run will not give good pictures, and what to do; None if it may.

    kind: as `kind_of` gives it. scheduler: the model's scheduler_config.json. Samplers that the
    caller has configured or computed are his own affair.
    """
    if not isinstance(request.sampler, str | None):
        return None
    faults = [] if kind is None else _faults(request, batch, scheduler, kind)
    of_edm = str(scheduler.get("_class_name")).startswith("EDM")  # times are no training times
    first = 1.0 if request.denoising_start or of_edm else _first_time(scheduler, batch)
    if first < (0.5 if kind is None else 0.9):
        faults.append(
            f"a first step at {first:.0%} of the training times, where the model expects less noise"
        )
    if not faults:
        return None
    if kind is None:
        return f"this run has {faults[0]}; use spacing 'trailing', or more steps"
    name = kind.upper() if len(kind) == 3 else kind.title()
    return (
        f"this seems to be a distilled model ({name}), made for {ADVICE[kind]}; this run has "
        f"{' and '.join(faults)}"
    )


def _faults(
    request: Request, batch: BatchRequest, scheduler: Mapping[str, Any], kind: str
) -> list[str]:
    faults, scale = [], float(batch.guidance_scale.max())
    if request.num_steps > MOST_STEPS:
        faults.append(f"{request.num_steps} steps")
    if batch.guided and scale > MOST_GUIDANCE:
        faults.append(f"guidance scale {scale:g}")
    # a single file of SD 2 is taken for a v model, as diffusers does; SD-Turbo is none
    is_xl = batch.time_ids is not None
    if kind == "turbo" and not is_xl and scheduler.get("prediction_type") == "v_prediction":
        faults.append("prediction_type 'v_prediction', where SD-Turbo needs 'epsilon'")
    return faults


def _first_time(scheduler: Mapping[str, Any], batch: BatchRequest) -> float:
    """Tells where in the training times, from 0 to 1, a run from pure noise begins."""
    if batch.from_image or batch.table.start_row == batch.table.num_rows:
        return 1.0
    last = scheduler.get("num_train_timesteps", 1000) - 1
    return float(batch.table.t[batch.table.start_row]) / max(last, 1)
