# SPDX-License-Identifier: MIT
"""Compiles every train step and the Stable Diffusion programs for TPUs, on a machine without one.

    python -m benchmarks.compile_for_tpu                                  # extra: tpu
    python -m benchmarks.compile_for_tpu --models sd15 --topologies v6e:2x4 --effort -1

All figures are estimates of the compiler: nothing runs. The exit status is 1 if a program does not
compile or needs more memory than a chip has. For v6e the compiler spends several times as long on a
convolution as for v5e; with `--effort -1` Stable Diffusion compiles for it in minutes.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no TPU is needed to compile for one
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud that knows the machine
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compiling needs no TPU for itself

import jax
import jax.numpy as jnp
import rich.console
import rich.table
import tyro

from benchmarks import result_file, training
from benchmarks.compiling import checks, programs, tpu
from benchmarks.sd import sd_models
from benchmarks.tables import show
from jaxgen import files, script
from jaxgen.measure import environment
from jaxgen.runs import plan

DIFFUSION = ("sd15", "sd21", "sdxl")


@dataclass(frozen=True)
class Config:
    """Options of the compilation."""

    topologies: tuple[str, ...] = ("v5e:2x4", "v6e:2x4")  # TPUs to compile for
    models: tuple[str, ...] = (*training.SCRIPTS, "attention", *DIFFUSION)  # models to compile
    axes: tuple[str, ...] = ("data", "model")  # Stable Diffusion: divide images, or parameters
    batch_size: int = 128  # training: images on one device
    images: int = 1  # Stable Diffusion: images on one device (data), or on all (model)
    num_steps: int = 20  # Stable Diffusion: sampling steps
    quantize: tuple[str, ...] = ("none",)  # Stable Diffusion: kernels as none, int8, fp8, w8a8
    dtype: str = "bfloat16"  # of the networks' arithmetic
    effort: float = 0.0  # of the compiler for fast programs: -1 least and quick, 1 most
    output: str = "runs/tpu.json"  # results go to this file


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    _check(config)
    jax.config.update("jax_exec_time_optimization_effort", config.effort)
    chips = {name: tpu.topology(name) for name in config.topologies}
    # a file or a pipe has no width of its own
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    console.print("Estimates of the TPU compiler; nothing here runs on a TPU.")
    results: list[dict[str, Any]] = []
    content = {"environment": environment.record(), "config": asdict(config), "rows": results}
    for name, (chip, devices) in chips.items():
        table = rich.table.Table(title=name, title_justify="left", title_style="bold")
        for i, heading in enumerate(show.TPU_HEADINGS):
            table.add_column(heading, justify="right" if i else "left")
        for row in _rows(config, chip, devices):
            print(f"{name} {row['program']}: {row['error'] or 'compiled'}", flush=True)
            table.add_row(*show.tpu_cells(row))
            results.append({"topology": name} | row)
            result_file.write(Path(config.output), content)
        console.print(table)
    failed = [row for row in results if row["error"]]
    print(f"{len(results)} programs, {len(failed)} failed: {config.output}")
    sys.exit(1 if failed else 0)


def _rows(config: Config, chip: tpu.Chip, devices: list[Any]) -> Iterator[dict[str, Any]]:
    """The rows of all programs for one topology, each as soon as it is compiled."""
    with tpu.as_on_tpu():
        steps = [name for name in config.models if name in training.SCRIPTS]
        for program in programs.training_programs(steps, devices, config.batch_size, config.dtype):
            yield tpu.estimate(program, chip, len(devices))
        if "attention" in config.models:
            for program in programs.attention_programs(devices[0]):
                yield tpu.estimate(program, chip, 1)
        for model in config.models:
            if model in sd_models.MODELS:
                yield from _diffusion_rows(config, chip, devices, model)


def _diffusion_rows(
    config: Config, chip: tpu.Chip, devices: list[Any], model: str
) -> Iterator[dict[str, Any]]:
    for axis, quantize in itertools.product(config.axes, config.quantize):
        parts, kind = [], None if quantize == "none" else quantize
        for program in programs.diffusion_programs(
            model, devices, axis, config.images, config.num_steps, jnp.dtype(config.dtype),
            quantize=kind,
        ):  # fmt: skip
            parts.append(tpu.estimate(program, chip, len(devices)))
            yield parts[-1]
        images = config.images * (len(devices) if axis == "data" else 1)
        whole = programs.whole_images(parts, images, tpu.SUMMED)
        if whole is not None:
            yield whole


def _check(config: Config) -> None:
    checks.check(config, {
        "model": (config.models, (*training.SCRIPTS, "attention", *sd_models.MODELS)),
        "dtype": ((config.dtype,), ("float32", "bfloat16")),
    })  # fmt: skip
    if not config.topologies:
        raise ValueError("no topology is named; use one or more, as --topologies v5e:2x4")
    plan.check_range(config, -1, "effort", high=1)
    files.check_writable(Path(config.output))


if __name__ == "__main__":
    script.main(main)
