# SPDX-License-Identifier: MIT
"""The command line of a training script: options that all of them have, presets, resuming."""

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import tyro

from jaxgen import files
from jaxgen.runs import run_folder


class Dataclass(Protocol):
    """Any dataclass, the only kind of configuration there is."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Config = TypeVar("Config", bound=Dataclass)
T = TypeVar("T")


def may_change(default: T) -> T:
    """Makes a field of a Config that may differ between a run and its continuation.

    It is for options that change no number of the run: where it lies, how often it saves.
    """
    field: Any = dataclasses.field(default=default, metadata={"may_change": True})
    return field


# Four classes, because the help shows one box of options for each. A script sees them as one.
@dataclass(frozen=True)
class MainOptions:
    """Ten options that most runs need."""

    # digits, mnist5k, a TFDS name (mnist, ...), a folder or .npz file; latent_ scripts: world, or a
    # folder of pictures with captions
    data: str = "digits"
    image_size: int | None = None  # pixels; resize the shorter side to this and crop the middle
    steps: int = may_change(2000)  # optimiser steps (a GAN's: generator steps)
    epochs: float | None = may_change(None)  # passes over the data; replaces --steps
    batch_size: int = 128  # examples per update, over all devices
    learning_rate: float = 1e-3  # of Adam
    seed: int = 0  # of everything random: parameters, noise, order of the data
    run_dir: str | None = may_change(None)  # the run's folder; runs/NAME, runs/NAME-2, ... if None
    resume: bool = may_change(False)  # go on from the newest valid checkpoint in --run-dir
    overwrite: bool = may_change(False)  # replace the run in --run-dir


@dataclass(frozen=True)
class DataOptions:
    """How the data is read."""

    channels: Literal[1, 3] | None = None  # 1 is grey, 3 is colour; None takes what is stored
    data_dir: str | None = may_change(None)  # prepared TFDS sets; ~/tensorflow_datasets if None
    data_on: Literal["auto", "device", "host"] = "auto"  # keep all on the device, or stream
    augment: Literal["none", "flip", "shift"] = "none"  # of the training images, on the device


@dataclass(frozen=True)
class TrainingOptions:
    """How the parameters change, and on which devices."""

    accumulate: int = 1  # microbatches per update
    num_models: int = 1  # train so many models at once, with seeds seed, seed + 1, ...
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # of the learning rate
    warmup_steps: int = 0  # of the learning rate
    clip_norm: float = 0.0  # largest global gradient norm; 0 does not clip
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the networks' arithmetic
    # how a step spreads over devices
    parallel: Literal["jit", "pmap", "shard_map"] = may_change("jit")
    num_devices: int | None = may_change(None)  # None takes all
    # train on several hosts, which the cluster manager finds, or the environment variables
    # JAX_COORDINATOR_ADDRESS (as host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    distributed: bool = may_change(False)
    # steps per dispatch; None chooses by backend and network. Checkpoints and pictures come at the
    # end of the dispatch in which they fall due
    scan_steps: int | None = may_change(None)


@dataclass(frozen=True)
class OutputOptions:
    """What a run writes, and how often."""

    checkpoint_every: int = may_change(1000)  # steps; 0 saves at the end only
    draw_every: int = may_change(500)  # steps between pictures; 0 draws at the end only
    log_every: int = may_change(50)  # steps between rows of metrics.jsonl
    tensorboard: bool = may_change(False)  # log there too (extra: log)
    wandb: str | None = may_change(None)  # log to this project of Weights & Biases (extra: log)


@dataclass(frozen=True)
class RunOptions(OutputOptions, TrainingOptions, DataOptions, MainOptions):
    """Options that every training script has; those of the last base class come first."""


GROUPS = {
    "main": MainOptions, "data": DataOptions, "training": TrainingOptions, "output": OutputOptions
}  # fmt: skip


# (an option, its values) -> the options that are read beside these values alone
ReadWith = Mapping[tuple[Any, ...], tuple[str, ...]]
OF_TRAINING: ReadWith = {
    ("action", "train"): (
        "steps", "epochs", "resume", "overwrite", "parallel", "num_devices", "scan_steps",
        *(field.name for field in dataclasses.fields(OutputOptions)),
    )
}  # fmt: skip


def parse(
    name: str,
    presets: dict[str, Config],
    description: str,
    argv: list[str] | None = None,
    read_with: ReadWith = types.MappingProxyType({}),
) -> Config:
    """Reads the configuration of a script from its command line.

    presets: complete configurations, the first the default; `--preset` picks one and further flags
    change it. With `--resume`, or an `--action` on a finished run, the run's own configuration is
    the default instead, and a flag that would make it another run is an error naming the field. So
    is a flag that nothing will read, by `read_with` and `OF_TRAINING`.
    """
    argv = sys.argv[1:] if argv is None else argv
    flags = _first_flags(argv, next(iter(presets)))
    if flags.preset not in presets:
        raise ValueError(f"unknown preset {flags.preset!r}; use one of {', '.join(presets)}")
    default = presets[flags.preset]
    stored = None
    if flags.resume or flags.action != "train":
        if flags.run_dir is None:
            raise ValueError("say which run with --run-dir")
        stored = read(type(default), flags.run_dir, name)
        # how the machine is used is said anew each time
        default = _with_run(
            stored, distributed=False, num_devices=None, resume=False, overwrite=False
        )
    if flags.steps is not None:
        if flags.epochs is not None:
            raise ValueError("--steps and --epochs both say how long to train; give one of them")
        default = _with_run(default, epochs=None)
    config = _from_flags(default, argv, description)
    if stored is not None:
        _check_same(stored, config, flags.run_dir)
    check_read(config, OF_TRAINING, argv)
    check_read(config, read_with, argv)
    return config


def _first_flags(argv: list[str], preset: str) -> argparse.Namespace:
    """Reads the flags that say which configuration the others change."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default=preset)
    first.add_argument("--run-dir", "--run_dir", default=None)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--action", default="train")
    first.add_argument("--steps")
    first.add_argument("--epochs")
    try:
        return first.parse_known_args(argv)[0]
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; --help lists the options") from None


def _from_flags(default: Config, argv: list[str], description: str) -> Config:
    """Parses the flags over the default; the help shows the options in groups."""
    kinds = {"main": MainOptions, "model": type(default), **GROUPS}
    options: Any = dataclasses.make_dataclass("Options", kinds.items(), frozen=True)
    run = asdict(default)["run"]
    parts = {
        group: kind(**{field.name: run[field.name] for field in dataclasses.fields(kind)})
        for group, kind in GROUPS.items()
    }
    values = tyro.cli(
        options, default=options(model=default, **parts), args=argv, description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed),
    )  # fmt: skip
    changes: dict[str, Any] = {}
    for group in GROUPS:
        changes |= asdict(getattr(values, group))
    return _with_run(values.model, **changes)


def _with_run(config: Any, **changes: Any) -> Any:
    """Returns the configuration with other options of the run."""
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


def read(kind: type[Config], run_dir: str, name: str) -> Config:
    """Reads the configuration of a run of script `name` in this folder, which may have moved."""
    folder = files.expanded(run_dir)
    values = run_folder.read_config(folder, name)
    with files.one_error(folder / "config.json"):
        stored = from_dict(kind, values)
    return _with_run(stored, run_dir=run_dir)


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Makes the dataclass of these values, as `asdict` and JSON left them.

    Raises ValueError naming fields that the dataclass does not have.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        shown = ", ".join(files.printable(name, 40) for name in unknown[:20])
        raise ValueError(f"unknown fields {shown}; the run is of another version")
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if "run" in options:
        options["run"] = from_dict(RunOptions, options["run"])
    hints = typing.get_type_hints(kind)
    wrong = [
        f"{name} is {files.printable(json.dumps(values[name]), 60)}, not {_expected(hints[name])}"
        for name, value in options.items()
        if name != "run" and not _is_of(value, hints[name])
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    return kind(**options)


def _is_of(value: Any, hint: Any) -> bool:
    """Tells whether a value has the type of a field: numbers, texts, choices and tuples of them."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Literal:
            return any(type(value) is type(each) and value == each for each in arguments)
        case types.UnionType | typing.Union:
            return any(_is_of(value, each) for each in arguments)
        case origin if origin is tuple:
            return isinstance(value, tuple) and all(_is_of(each, arguments[0]) for each in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is (type(None) if hint is None else hint)


def _expected(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def changeable(config: Any) -> set[str]:
    """Names the options, of the script and of the run, that were marked `may_change`."""
    fields = (*dataclasses.fields(config), *dataclasses.fields(config.run))
    return {field.name for field in fields if field.metadata.get("may_change")}


def _check_same(stored: Any, config: Any, run_dir: str) -> None:
    """Raises ValueError naming every field in which a run and its continuation differ."""
    old, new = _flat(stored), _flat(config)
    fixed = old.keys() - changeable(config)
    if stored.run.schedule != "constant":
        fixed |= {"steps", "epochs"}  # the learning rate depends on the length
    changed = [name for name in old if name in fixed and old[name] != new[name]]
    if changed:
        what = "; ".join(f"{name} is {old[name]}, not {new[name]}" for name in changed)
        raise ValueError(
            f"{run_dir} is another run: {what}. Leave the flag out, or train into a new --run-dir"
        )


def check_read(config: Any, read_with: ReadWith, argv: list[str] | None = None) -> None:
    """Raises ValueError for a flag whose option is not read beside the others.

    An option that is read beside True is read where that other one is given, or on. The value of a
    preset is no flag. One that turns something off (--no-binarize) is never unread: nothing is
    done, as it says.
    """
    argv = sys.argv[1:] if argv is None else argv
    values = _flat(config)
    flags = [word.partition("=")[0] for word in argv if word.startswith("--")]
    given = {flag[2:].replace("-", "_") for flag in flags}
    for (other, *wanted), names in read_with.items():
        unread = [name for name in names if name in given and values[name]]
        value = values.get(other, wanted[0])  # latent_ scripts only train
        if unread and not (value if wanted == [True] else value in wanted):
            need = _flag(other) if wanted == [True] else f"{_flag(other)} {' or '.join(wanted)}"
            raise ValueError(f"{_flag(unread[0])} needs {need}; leave it out, or give that too")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _flat(config: Any) -> dict[str, Any]:
    """Gives all options by name, those of the run among the script's own."""
    values = asdict(config)
    return values.pop("run", {}) | values
