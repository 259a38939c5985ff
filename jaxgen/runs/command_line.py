# SPDX-License-Identifier: MIT
"""The command line of a training script: options that all of them have, presets, resuming."""

import argparse
import dataclasses
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import tyro

from jaxgen.runs import run_folder


class Dataclass(Protocol):
    """Any dataclass, the only kind of configuration there is."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Config = TypeVar("Config", bound=Dataclass)


@dataclass(frozen=True)
class RunOptions:
    """Options that every training script has."""

    data: str = "digits"  # digits, a TFDS name (mnist, ...), or a folder or .npz file
    image_size: int | None = None  # pixels; resize the shorter side to this and crop the middle
    channels: Literal[1, 3] | None = None  # grey or colour; as stored by default
    data_dir: str | None = None  # where prepared TFDS sets lie; ~/tensorflow_datasets by default
    data_on: Literal["auto", "device", "host"] = "auto"  # keep all on the device, or stream
    augment: Literal["none", "flip", "shift"] = "none"  # of the training images, on the device
    steps: int = 2000  # optimiser steps (a GAN's: generator steps)
    epochs: float | None = None  # passes over the data; replaces --steps
    batch_size: int = 128  # examples per update, over all devices
    accumulate: int = 1  # microbatches per update
    seed: int = 0  # of everything random: parameters, noise, order of the data
    num_models: int = 1  # train so many models at once, with seeds seed, seed + 1, ...
    learning_rate: float = 1e-3  # of Adam
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # of the learning rate
    warmup_steps: int = 0  # of the learning rate
    clip_norm: float = 0.0  # largest global gradient norm; 0 does not clip
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the networks' arithmetic
    parallel: Literal["jit", "pmap", "shard_map"] = "jit"  # how a step spreads over devices
    num_devices: int | None = None  # all by default
    # several hosts, found by the cluster manager, or by the environment's JAX_COORDINATOR_ADDRESS
    # (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    distributed: bool = False
    # steps per dispatch, chosen by backend and network by default; checkpoints and pictures come at
    # the first end of a dispatch after theirs is due
    scan_steps: int | None = None
    run_dir: str | None = None  # where the run lives; runs/NAME, runs/NAME-2, ... by default
    resume: bool = False  # go on from the newest valid checkpoint in --run-dir
    overwrite: bool = False  # replace the run in --run-dir
    checkpoint_every: int = 1000  # steps; 0 saves at the end only
    draw_every: int = 500  # steps between pictures; 0 draws at the end only
    log_every: int = 50  # steps between rows of metrics.jsonl
    tensorboard: bool = False  # log there too (extra: log)
    wandb: str | None = None  # a Weights & Biases project to log to as well (extra: log)


# What may differ between a run and its continuation: it changes no number of the run. Its length
# may where the learning rate does not depend on it.
FREE = {
    "action", "steps", "epochs", "data_dir", "parallel", "num_devices",
    "distributed", "scan_steps", "run_dir", "resume", "overwrite", "checkpoint_every",
    "draw_every", "log_every", "tensorboard", "wandb", "num_samples", "output", "nll_samples",
    "num_prompts", "decoder",
}  # fmt: skip


def parse(
    name: str,
    presets: dict[str, Config],
    description: str,
    argv: list[str] | None = None,
    choice: str = "preset",
) -> Config:
    """The configuration of a script from its command line.

    presets: complete configurations, the first the default; `--preset`, or the flag that `choice`
    names, picks one and further flags change it. With `--resume`, or an `--action` on a finished
    run, the run's own configuration is the default instead, and a flag that would make it another
    run is an error naming the field.
    """
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(f"--{choice}", dest="choice", default=next(iter(presets)))
    first.add_argument("--run-dir", "--run_dir", default=None)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--action", default="train")
    first.add_argument("--steps")
    first.add_argument("--epochs")
    known, _ = first.parse_known_args(argv)

    if known.choice not in presets:
        raise ValueError(f"unknown {choice} {known.choice!r}; use one of {', '.join(presets)}")
    default = presets[known.choice]
    stored = None
    if known.resume or known.action != "train":
        if known.run_dir is None:
            raise ValueError("say which run with --run-dir")
        stored = from_dict(type(default), run_folder.read_config(Path(known.run_dir), name))
        # how the machine is used is said anew each time
        default = _with_run(
            stored, distributed=False, num_devices=None, resume=False, overwrite=False
        )
    if known.steps is not None:
        if known.epochs is not None:
            raise ValueError("--steps and --epochs both say how long to train; give one of them")
        default = _with_run(default, epochs=None)
    config = tyro.cli(type(default), default=default, args=argv, description=description)
    if stored is not None:
        _check_same(stored, config, known.run_dir)
    return config


def _with_run(config: Any, **changes: Any) -> Any:
    """The configuration with other options of the run."""
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """The dataclass with these values, as `asdict` and JSON left them.

    Raises ValueError naming fields that the dataclass does not have.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}; the run is of another version")
    ready = {}
    for name, value in values.items():
        if name == "run":
            value = from_dict(RunOptions, value)
        ready[name] = tuple(value) if isinstance(value, list) else value
    return kind(**ready)


def _check_same(stored: Any, config: Any, run_dir: str) -> None:
    """Raises ValueError naming every field in which a run and its continuation differ."""
    old, new = _flat(stored), _flat(config)
    free = FREE if stored.run.schedule == "constant" else FREE - {"steps", "epochs"}
    changed = [name for name in old if name not in free and old[name] != new[name]]
    if changed:
        what = "; ".join(f"{name} is {old[name]}, not {new[name]}" for name in changed)
        raise ValueError(
            f"{run_dir} is another run: {what}. Leave the flag out, or train into a new --run-dir"
        )


def _flat(config: Any) -> dict[str, Any]:
    values = asdict(config)
    return values.pop("run") | values
