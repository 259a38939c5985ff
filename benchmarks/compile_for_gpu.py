# SPDX-License-Identifier: MIT
"""Compiles every train step and the Stable Diffusion programs for GPUs, on a machine without one.

    python -m benchmarks.compile_for_gpu                                  # extra: cuda13
    python -m benchmarks.compile_for_gpu --targets h100 --models sd15
    python -m benchmarks.compile_for_gpu --models vae --check benchmarks/results/gpu_*.json

All figures are the compiler's: nothing runs, and nothing is tuned on a device. The exit status is 1
if a program does not compile or needs more memory than the GPU has, and with --check, if a program
is worse than in these results, the newest that have it.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no GPU is needed to compile for one

import jax.numpy as jnp
import tyro

from benchmarks import result_file, training
from benchmarks.compiling import checks, gpu, options, programs, regression
from benchmarks.sd import sd_models
from jaxgen import files, script
from jaxgen.measure import environment
from jaxgen.runs import plan

DIFFUSION = ("sd15", "sd21", "sdxl")


@dataclass(frozen=True)
class Config:
    """Options of the compilation."""

    targets: tuple[str, ...] = tuple(gpu.TARGETS)  # GPUs to compile for
    device_counts: tuple[int, ...] = (1, 8)  # GPUs of one host
    models: tuple[str, ...] = (*DIFFUSION, *training.SCRIPTS)  # models to compile
    dispatches: tuple[str, ...] = ("scan", "step")  # training: 50 steps a call, or one
    dtypes: tuple[str, ...] = ("bfloat16", "float32")  # training: of the networks' arithmetic
    batch_size: int = 128  # training: images on one device
    axes: tuple[str, ...] = ("data", "model")  # Stable Diffusion: divide images, or parameters
    images: int = 1  # Stable Diffusion: images on one device (data), or on all (model)
    num_steps: int = 20  # Stable Diffusion: sampling steps; always bfloat16
    quantize: tuple[str, ...] = ("none",)  # Stable Diffusion: kernels as none, int8, fp8, w8a8
    prepared: tuple[str, ...] = ()  # options that no GPU has confirmed: options.py
    output: str = "runs/gpu.json"  # results go to this file
    check: tuple[str, ...] = ()  # results to compare with: fail where a program became worse


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    _check(config)
    if config.prepared:
        options.use(config.prepared)
    before = regression.read([Path(name) for name in config.check])
    for target in config.targets:
        gpu.devices(target, 1)
    print("The compiler's figures; nothing here runs on a GPU.")
    results: list[dict[str, Any]] = []
    content = {"environment": environment.record(), "config": asdict(config), "rows": results}
    for row in _rows(config):
        results.append(row)
        result_file.write(Path(config.output), content)
        print(f"{_place(row)} {row['program']}: {_summary(row)}", flush=True)
    worse = regression.worse(before, results) if config.check else []
    for line in worse:
        print(f"worse: {line}")
    failed = [row for row in results if row["error"]]
    print(f"{len(results)} programs, {len(failed)} failed, {len(worse)} worse: {config.output}")
    sys.exit(1 if failed or worse else 0)


def _rows(config: Config) -> Iterator[dict[str, Any]]:
    """The rows of all programs, each as soon as it is compiled."""
    for target, count in itertools.product(config.targets, config.device_counts):
        devices = gpu.devices(target, count)
        with gpu.as_on_gpu(target):
            for model in config.models:
                if model in training.SCRIPTS:
                    yield from _training_rows(config, target, devices, model)
                else:
                    yield from _diffusion_rows(config, target, devices, model)


def _training_rows(
    config: Config, target: str, devices: list[Any], model: str
) -> Iterator[dict[str, Any]]:
    for dtype, dispatch in itertools.product(config.dtypes, config.dispatches):
        for program in programs.training_programs(
            [model], devices, config.batch_size, dtype, dispatch
        ):
            yield gpu.compiled_row(program, target, len(devices)) | {"dtype": dtype}


def _diffusion_rows(
    config: Config, target: str, devices: list[Any], model: str
) -> Iterator[dict[str, Any]]:
    axes = config.axes if len(devices) > 1 else config.axes[:1]  # one device has nothing to divide
    for axis, quantize in itertools.product(axes, config.quantize):
        parts, kind = [], None if quantize == "none" else quantize
        for program in programs.diffusion_programs(
            model, devices, axis, config.images, config.num_steps, jnp.dtype("bfloat16"),
            "cudnn" if options.KERNELS in config.prepared else None, kind,
        ):  # fmt: skip
            row = gpu.compiled_row(program, target, len(devices)) | {"dtype": "bfloat16"}
            parts.append(row)
            yield row
        images = config.images * (len(devices) if axis == "data" else 1)
        whole = programs.whole_images(parts, images, gpu.SUMMED)
        if whole is not None:
            whole["bytes"] += sum(part["rounds"] * part["bytes_once"] for part in parts[::2])
            whole["bytes"] += parts[1]["bytes_once"]  # of the UNet's loop, before it
            yield whole | {"bytes_once": 0}


def _place(row: dict[str, Any]) -> str:
    return f"{row['num_devices']} {row['target']}"


def _summary(row: dict[str, Any]) -> str:
    if "kernels" not in row:
        return f"FAILED: {row['error']}"
    text = f"{row['kernels']} kernels, {row['launches']} launches, {row['bytes'] / 1e9:.2f} GB"
    return f"{text} ({row['error']})" if row["error"] else text


def _check(config: Config) -> None:
    checks.check(config, {
        "target": (config.targets, tuple(gpu.TARGETS)),
        "model": (config.models, (*training.SCRIPTS, *sd_models.MODELS)),
        "dispatch": (config.dispatches, ("scan", "step")),
        "dtype": (config.dtypes, ("float32", "bfloat16")),
    })  # fmt: skip
    if not config.device_counts:
        raise ValueError("no device count is named; use one or more, as --device-counts 1 8")
    plan.check_range(config, 1, "device_counts", high=64)
    files.check_writable(Path(config.output))


if __name__ == "__main__":
    script.main(main)
