# SPDX-License-Identifier: MIT
"""The decisions of a run (data, steps, dispatch), checked before anything is compiled."""

import hashlib
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgen.data import sets
from jaxgen.runs import experiment
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Build, Examples, System
from jaxgen.train import parallel

MOST_SEED = 2**32 - 1

# --- data --------------------------------------------------------------------------------------


def open_split(options: RunOptions, split: str) -> sets.Source:
    """Opens the split "train" or "test" of --data."""
    return sets.open_source(
        options.data, split, image_size=options.image_size, channels=options.channels,
        data_dir=options.data_dir,
    )  # fmt: skip


def read_examples(
    options: RunOptions, source: sets.Source, test: sets.Source, count: int = 64
) -> Examples:
    """Gathers the facts of the training set, and `count` test examples spread over the split."""
    if test.image_shape != source.image_shape:
        raise ValueError(
            f"the test images of {options.data} are {_shape(test.image_shape)} and the training "
            f"images {_shape(source.image_shape)}; set one size for both with --image-size and "
            f"--channels"
        )
    if not test.num_examples:
        raise ValueError(f"{options.data} has no test image; add some, or remove its test split")
    shown = max(2, min(count, test.num_examples))  # pictures pass from one image to another
    rows = np.linspace(0, test.num_examples - 1, shown).astype(int)
    images, labels = test.read(rows.tolist())
    lines = [split.description for split in (source, test) if split.description]
    return Examples(
        source.num_examples,
        source.image_shape,
        source.class_names,
        images,
        labels,
        description=" | ".join(lines),
    )


def fingerprint(source: sets.Source) -> dict[str, Any]:
    """Gathers what tells training sets apart: counts, shape, classes, and a few of the bytes.

    Encoded examples are floats, whose last bits depend on the device: they have no digest.
    """
    facts: dict[str, Any] = {
        "num_examples": source.num_examples,
        "image_shape": list(source.image_shape),
        "class_names": list(source.class_names),
    }
    if source.dtype == np.uint8:
        places = np.linspace(0, source.num_examples - 1, min(8, source.num_examples)).astype(int)
        images, labels = source.read(places.tolist())
        content = np.ascontiguousarray(images).tobytes() + np.asarray(labels, np.int32).tobytes()
        facts["digest_of_eight"] = hashlib.sha256(content).hexdigest()[:16]
    return facts


def _shape(image_shape: tuple[int, ...]) -> str:
    return "x".join(map(str, image_shape))


# --- checks ------------------------------------------------------------------------------------


def check_range(config: Any, low: float, *names: str, high: float = math.inf) -> None:
    """Raises ValueError for the first of these options that is not finite and in [low, high].

    An option that is not set is None, and is passed over.
    """
    for name in names:
        values = getattr(config, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is None:
                continue
            if not low <= value <= high or math.isinf(value):  # also true of nan
                limits = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
                raise ValueError(f"--{name.replace('_', '-')} is {value}; use {limits}")


def check_multiple(name: str, values: tuple[int, ...], of: int, what: str) -> None:
    """Raises ValueError for the first value that is no multiple of `of`, which is `what`."""
    for value in values:
        if value % of:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} has {value}; use multiples of {of} ({what})")


def check_options(options: RunOptions) -> None:
    """Raises ValueError for an option out of range, before any data is read or rendered."""
    check_range(options, 1, "batch_size", "accumulate", "num_models", "log_every")
    check_range(options, 0, "checkpoint_every", "draw_every", "clip_norm")
    check_range(options, 1, "steps", high=experiment.MOST_STEPS)
    check_range(options, 0, "warmup_steps", high=experiment.MOST_STEPS)
    check_range(options, 0, "seed", high=2**32 - options.num_models)
    if options.resume and options.overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it; give one of them")
    if options.epochs is not None and not 0 < options.epochs < math.inf:
        raise ValueError(f"--epochs is {options.epochs}; use a positive number")
    if options.batch_size % options.accumulate:
        raise ValueError(
            f"batch of {options.batch_size} cannot be dealt into {options.accumulate} "
            f"microbatches; use a multiple of {options.accumulate}"
        )


def checked_system(config: Any, build: Build, examples: Examples) -> System:
    """Builds the system of a script; what is wrong with its own options shows before compiling."""
    system = build(config, examples)
    jax.eval_shape(system.init, jax.random.key(0))
    return system


def check_step(options: RunOptions, system: System, source: sets.Source) -> None:
    """Traces a step and computes nothing: what fails in it fails before a run is replaced."""
    size = system.images_per_step
    shapes = ((size, *source.image_shape), (size, *source.label_shape))
    examples = map(jax.ShapeDtypeStruct, shapes, (source.dtype, np.int32))
    batch = dict(zip(source.names, examples, strict=True)) | dict(system.shared)
    state = jax.eval_shape(experiment.init_of(system, options), experiment.init_keys(options))
    one = experiment.step_of(system, options)
    jax.eval_shape(one, state, batch, experiment.train_keys(options))


def fits_on_device(options: RunOptions, source: sets.Source) -> bool:
    """Says whether the data stay on the devices: by --data-on, or by a quarter of the memory."""
    if options.data_on != "auto":
        return options.data_on == "device"
    stats = jax.local_devices()[0].memory_stats() or {}
    return sets.size_in_bytes(source) <= stats.get("bytes_limit", 8 * 2**30) / 4


def steps_per_dispatch(options: RunOptions, system: System, resident: bool) -> int:
    """Chooses the steps of one dispatch: --scan-steps, or by backend and network."""
    if not resident:
        if (options.scan_steps or 1) > 1:
            raise ValueError(
                f"--scan-steps {options.scan_steps} needs the data on the device; this set streams "
                f"from the host: use --scan-steps 1, or --data-on device if it fits"
            )
        return 1
    if options.scan_steps is not None:
        if options.scan_steps < 1:
            raise ValueError(f"--scan-steps is {options.scan_steps}; use 1 or more")
        return options.scan_steps
    # on CPU their steps take so long that dispatching costs nothing, and a signal is heard sooner
    if system.convolutional and jax.default_backend() == "cpu":
        return 1
    # a common divisor, so that checkpoints and pictures come when they are due
    return math.gcd(50, options.checkpoint_every, options.draw_every)


def check_batch(options: RunOptions, system: System, mesh: Mesh, examples: Examples) -> None:
    """Raises ValueError for a batch larger than the data, or that the devices cannot share."""
    size = system.images_per_step
    if size > examples.num_examples:
        largest = examples.num_examples * options.batch_size // size
        raise ValueError(
            f"a step takes {size} images and the training set has {examples.num_examples}; "
            f"use a smaller --batch-size, at most {largest}"
        )
    parallel.check_divisible(np.empty(size), parallel.EXAMPLES, mesh)
    own = size // (1 if options.parallel == "jit" else mesh.size)
    parts = size // options.batch_size * options.accumulate
    if own % parts:
        raise ValueError(
            f"with --parallel {options.parallel} each of {mesh.size} devices has {own} examples of "
            f"a step, which cannot be dealt into {parts} parts; use a --batch-size that is a "
            f"multiple of {mesh.size * options.accumulate}, or --parallel jit"
        )
