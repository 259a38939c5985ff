# SPDX-License-Identifier: MIT
"""Measures how well a model of the rendered world follows prompts.

Examples:
    python experiments/prompt_following.py                       # the model that comes with jaxgen
    python experiments/prompt_following.py --model runs/shapes --num-prompts 100 --guidance 5

Four groups of prompts: one or two objects, of pairs of shape and colour that training has seen or
that were held out from it. An independent reader says which attributes each picture shows.
Leaves OUTPUT.json with the shares, OUTPUT-right.png and OUTPUT-wrong.png.
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from rich import progress
from rich.console import Console
from rich.table import Table

from jaxgen import files, script
from jaxgen.cpu import tune
from jaxgen.miniature import following
from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS
from jaxgen.pictures import images
from jaxgen.runs import plan, run_folder
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import hub
from jaxgen.world import reader

SHOWN = 24  # pictures in each of the two grids


@dataclass(frozen=True)
class Config:
    """Options of the measurement."""

    model: str = hub.EMBEDDED  # a diffusers folder whose model was trained on the rendered world
    num_prompts: int = 400  # of each of the four groups
    steps: int = NUM_STEPS  # of the sampler
    guidance: float = GUIDANCE_SCALE  # how closely to follow the prompt; 1 is no guidance
    sampler: str | None = None  # the model's own by default
    quantize: Literal["int8", "fp8"] | None = None  # keep kernels in 8 bits
    seed: int = 0  # of the first picture of each group
    batch_size: int = 64  # pictures made at once
    output: Path = Path("outputs/prompt_following")  # beginning of the names of the three files


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    script.compilation_cache()
    tune.tune_cpu()
    plan.check_range(config, 1, "num_prompts", "batch_size", "steps")
    plan.check_range(config, 0, "guidance")
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED)
    files.check_writable(config.output.with_suffix(".json"))
    config = replace(config, batch_size=min(config.batch_size, config.num_prompts))
    groups = measure(
        config, StableDiffusion.from_pretrained(config.model, quantize=config.quantize)
    )
    table = following.table(groups)
    show(table)
    for path in write(config, groups, table):
        print(path)


def measure(config: Config, pipe: StableDiffusion) -> dict[str, following.Group]:
    """Measures the groups, with a bar of pictures on a terminal."""
    columns = (
        progress.TextColumn("pictures"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    hidden = not sys.stderr.isatty()
    with progress.Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        task = bar.add_task("")
        return following.measure(
            pipe,
            config.num_prompts,
            num_steps=config.steps,
            guidance_scale=config.guidance,
            sampler=config.sampler,
            seed=config.seed,
            batch_size=config.batch_size,
            on_batch=lambda done, total: bar.update(task, completed=done, total=total),
        )


def show(shares: dict) -> None:
    """Prints the percentage of prompts whose attribute holds."""
    table = Table("prompts of", "number", *reader.ATTRIBUTES, title="held, in %")
    for name, row in shares.items():
        cells = [f"{100 * row[a]['share']:.1f}" if a in row else "" for a in reader.ATTRIBUTES]
        table.add_row(name, str(row["prompts"]), *cells)
    Console().print(table)


def write(config: Config, groups: dict[str, following.Group], shares: dict) -> list[Path]:
    """Writes the shares with the settings, and right and wrong pictures; returns their paths."""
    paths = [config.output.with_suffix(".json")]
    settings = {
        "num_steps": config.steps,
        "guidance_scale": config.guidance,
        "sampler": config.sampler,
        "quantize": config.quantize,
        "seed": config.seed,
        "batch_size": config.batch_size,
    }
    run_folder.write_json(paths[0], {"model": config.model, **settings, "groups": shares})
    for word, right in (("right", True), ("wrong", False)):
        pictures, prompts = following.examples(groups, right, SHOWN)
        if len(pictures):
            paths.append(config.output.with_name(f"{config.output.name}-{word}.png"))
            images.save(paths[-1], images.captioned(pictures, prompts))
    return paths


if __name__ == "__main__":
    script.main(main)
