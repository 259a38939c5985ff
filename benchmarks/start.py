# SPDX-License-Identifier: MIT
"""Measures how long a process takes from its start to its first picture, by what is kept on disk.

    python -m benchmarks.start                             # the embedded model
    python -m benchmarks.start --model sd15 --resolution 256
    python -m benchmarks.start --model sd15 --resolution 64 --steps 1 --kept programs

Candidates take turns, each in a process of its own: with nothing kept, with XLA's machine code
(what JAX's compilation cache holds), and with jaxgen's traced programs beside it. sd15, sd21 and
sdxl are the published shapes with random weights, as `StableDiffusion.save` writes them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import rich.console
import rich.table
import tyro

from benchmarks import result_file
from benchmarks.sd import sd_models, sd_programs
from benchmarks.tables import page
from jaxgen import files, script
from jaxgen.cpu import tune
from jaxgen.measure import environment
from jaxgen.stable_diffusion.networks import TOKENIZERS
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers, hub, tokenizer
from jaxgen.weights.diffusers import Checkpoint, Component

KEPT = {
    "nothing": "nothing kept",
    "code": "machine code kept",
    "programs": "machine code and programs kept",
}
# a process as a user writes it; it prints seconds, and the time of the picture
CHILD = """
import json, sys, time
begin = time.perf_counter()
from jaxgen import StableDiffusion, script
from jaxgen.cpu import tune
imports = time.perf_counter() - begin
path, programs, size, steps, dtype = json.loads(sys.argv[1])
tune.tune_cpu()
with script.stopwatch() as load:
    pipe = StableDiffusion.from_pretrained(path, dtype, programs_folder=programs)
with script.stopwatch() as call:
    pipe("a red circle", num_steps=steps, height=size, width=size)
end = time.time()
print(json.dumps({
    "end": end, "imports": imports, "load": load.seconds + load.compiling,
    "call": call.seconds + call.compiling, "trace_and_compile": load.compiling + call.compiling,
}))
"""


@dataclass(frozen=True)
class Config:
    """Options of the measurement."""

    model: str = hub.EMBEDDED  # "shapes", sd15, sd21, sdxl, or a folder in diffusers' layout
    resolution: int | None = None  # pixels; the model's own by default
    steps: int = 4  # of the sampler
    dtype: str = "float32"
    turns: int = 7
    kept: tuple[str, ...] = tuple(KEPT)  # the candidates, by what they find on disk
    output: Path | None = None  # write a JSON file


def main() -> None:
    config = tyro.cli(Config, description=str(__doc__).replace("\n    python", "\n\npython"))
    check(config)
    tune.tune_cpu()
    record = environment.record()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = config.model
        if path in sd_models.MODELS:
            path = str(folder / "model")
            StableDiffusion(random_checkpoint(config.model, config.dtype), config.dtype).save(path)
            shutil.rmtree(Path(path) / "programs")  # each candidate brings its own, or none
        path = str(hub.resolve(path))
        rows = measure(config, path, folder)
    headings, cells = page.start_table(rows)
    table = rich.table.Table(*headings)
    for row in cells:
        table.add_row(*row)
    rich.console.Console().print(table)
    if config.output:
        result_file.write(config.output, {"environment": record, "rows": rows})


def check(config: Config) -> None:
    """Raises ValueError for options out of range, unknown candidates, no place for the result."""
    unknown = [name for name in config.kept if name not in KEPT]
    if unknown or not config.kept:
        said = f"has {unknown[0]!r}" if unknown else "names nothing"
        raise ValueError(f"--kept {said}; use one or more of {', '.join(KEPT)}")
    for flag, value in (("--turns", config.turns), ("--steps", config.steps)):
        if value < 1:
            raise ValueError(f"{flag} is {value}; use 1 or more")
    if config.output:
        files.check_writable(config.output)


def random_checkpoint(name: str, dtype: str) -> Checkpoint:
    """A published model with random weights, and a tokenizer of one word."""
    model = sd_models.random(name, jnp.dtype(dtype))
    components = {}
    for part, config in model.configs.items():
        bare = Component(sd_models.CLASSES[part], config, {})
        components[part] = diffusers.with_params(bare, model.params[part])
    tokens = tokenizer.train(["a red circle"], sd_programs.TOKENS, 600)
    tokenizers = {TOKENIZERS[part]: tokens for part in model.networks.encoders}
    index = {"_class_name": f"StableDiffusion{'XL' * model.networks.is_xl}Pipeline"}
    return Checkpoint(index, components, tokenizers, sd_programs.SCHEDULER)


def measure(config: Config, path: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each candidate, with the seconds of its parts in every turn.

    The first start of each is not counted: it makes what is kept.
    """
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in config.kept}
    for turn in range(config.turns + 1):
        for name, row in rows.items():
            cache, programs = folder / f"cache of {name}", folder / f"programs of {name}"
            if name == "nothing":
                shutil.rmtree(cache, ignore_errors=True)
            seconds = start(config, path, cache, programs if name == "programs" else None)
            if turn:
                for part, value in seconds.items():
                    row.setdefault(part, []).append(value)
            elapsed = seconds["start_to_picture"]
            print(f"turn {turn}, {KEPT[name]}: {elapsed:.2f} s", file=sys.stderr)
    names = ("model", "dtype", "steps", "resolution")
    about = {"kind": "start", **{name: getattr(config, name) for name in names}}
    return [{**about, "kept": KEPT[name], "seconds": row} for name, row in rows.items()]


def start(config: Config, path: str, cache: Path, programs: Path | None) -> dict[str, float]:
    """Runs one process: the seconds of its parts, and from its start to the picture."""
    arguments = [path, programs and str(programs), config.resolution, config.steps, config.dtype]
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONDONTWRITEBYTECODE": "",  # byte code is kept, as on a user's machine
        "PYTHONPYCACHEPREFIX": str(cache.parent / "byte code"),
    }
    command = [sys.executable, "-c", CHILD, json.dumps(arguments)]
    begin = time.time()
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"a start failed: {done.stderr[-2000:]}")
    seconds = json.loads(done.stdout.splitlines()[-1])
    return {"start_to_picture": seconds.pop("end") - begin, **seconds}


if __name__ == "__main__":
    script.main(main)
