# SPDX-License-Identifier: MIT
"""What a run is going to do, worked out and checked before anything is compiled or written."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from PIL import Image

from jaxgen.cli import RunOptions
from jaxgen.data import sets
from jaxgen.train import optimizer, parallel
from jaxgen.types import Array, Key, Step


class Examples(NamedTuple):
    """What a network needs to know of its data, and a few held-out examples to draw."""

    num_examples: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    images: np.ndarray  # uint8 [K, H, W, C], from the test split; floats where encoded
    labels: np.ndarray  # int32 [K], or [K, T] token ids


class System(NamedTuple):
    """What an experiment builds: the state at step 0, one step, and its pictures."""

    init: Callable[[Key], Any]
    step: Step
    draw: Callable[[Any, Examples, Key], dict[str, Image.Image]]  # of one model's state
    images_per_step: int
    shown: tuple[str, ...]  # metrics beside the progress
    convolutional: bool
    keep: Callable[[Path], None] = lambda folder: None  # writes what else the new run is made of


Build = Callable[[Any, Examples, int], System]  # (config, examples, number of steps)
OpenSplit = Callable[[RunOptions, str], sets.Source]  # (options, "train" or "test")


def model(state: Any, options: RunOptions, i: int = 0) -> Any:
    """The state of model i, as it would be in a run of its own."""
    return state if options.num_models == 1 else jax.tree.map(lambda x: x[i], state)


def num_steps(options: RunOptions, examples: Examples, images_per_step: int) -> int:
    """Steps of the whole run: --steps, or as many as cover --epochs."""
    if options.epochs is None:
        return options.steps
    return max(1, round(options.epochs * examples.num_examples / images_per_step))


def num_classes(examples: Examples, conditional: bool) -> int:
    """How many classes the networks are conditioned on; 0 for none.

    Raises ValueError when that is asked for and the data has no labels.
    """
    if conditional and not examples.class_names:
        raise ValueError("--conditional needs labels, and this data has none")
    return len(examples.class_names) if conditional else 0


def optimizer_of(
    options: RunOptions, num_steps: int, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam with the schedule and the clipping that the options ask for."""
    rate = optimizer.schedule(
        options.learning_rate, num_steps, options.schedule, options.warmup_steps
    )
    return optimizer.adam(rate, b1, b2, options.clip_norm)


# --- data --------------------------------------------------------------------------------------


def open_split(options: RunOptions, split: str) -> sets.Source:
    return sets.open_source(
        options.data, split, image_size=options.image_size, channels=options.channels,
        data_dir=options.data_dir,
    )  # fmt: skip


def read_examples(
    options: RunOptions, source: sets.Source, test: sets.Source, count: int = 64
) -> Examples:
    """The training set's numbers and `count` test examples, spread over the split."""
    if test.image_shape != source.image_shape:
        raise ValueError(
            f"the test images of {options.data} are {_shape(test.image_shape)} and the training "
            f"images {_shape(source.image_shape)}; say what both shall be with --image-size and "
            f"--channels"
        )
    if test.num_examples < 2:
        raise ValueError(
            f"{options.data} holds out {test.num_examples} test image; pictures need two or more"
        )
    chosen = np.linspace(0, test.num_examples - 1, min(count, test.num_examples)).astype(int)
    chosen_images, chosen_labels = test.read(chosen.tolist())
    return Examples(
        source.num_examples,
        source.image_shape,
        source.class_names,
        chosen_images,
        chosen_labels,
    )


def _shape(image_shape: tuple[int, ...]) -> str:
    return "x".join(map(str, image_shape))


# --- checks ------------------------------------------------------------------------------------


def check_range(config: Any, low: float, *names: str, high: float = math.inf) -> None:
    """Raises ValueError for the first of these options that is not finite and in [low, high]."""
    for name in names:
        values = getattr(config, name)
        for value in values if isinstance(values, tuple) else (values,):
            if not low <= value <= high or math.isinf(value):  # also true of nan
                wanted = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
                raise ValueError(f"--{name.replace('_', '-')} is {value}; use {wanted}")


def make(config: Any, build: Build, examples: Examples) -> tuple[int, System]:
    """The number of steps and the system; every wrong option is found here, before any compile."""
    options: RunOptions = config.run
    check_range(options, 1, "steps", "batch_size", "accumulate", "num_models", "log_every")
    check_range(options, 0, "checkpoint_every", "draw_every", "warmup_steps", "clip_norm")
    check_range(options, 0, "seed", high=2**32 - options.num_models)
    if options.epochs is not None and not 0 < options.epochs < math.inf:
        raise ValueError(f"--epochs is {options.epochs}; use a positive number")
    if options.batch_size % options.accumulate:
        raise ValueError(
            f"batch of {options.batch_size} cannot be dealt into {options.accumulate} "
            f"microbatches; use a multiple of {options.accumulate}"
        )
    per_step = getattr(config, "discriminator_steps", 1)
    if per_step < 1:
        raise ValueError(f"--discriminator-steps is {per_step}; use 1 or more")
    count = num_steps(options, examples, options.batch_size * per_step)
    system = build(config, examples, count)
    jax.eval_shape(system.init, jax.random.key(0))
    return count, system


def fits_on_device(options: RunOptions, source: sets.Source) -> bool:
    """Whether the set is kept on the devices: if it takes at most a quarter of their memory."""
    if options.data_on != "auto":
        return options.data_on == "device"
    stats = jax.local_devices()[0].memory_stats() or {}
    return sets.size_in_bytes(source) <= stats.get("bytes_limit", 8 * 2**30) / 4


def scan_steps(options: RunOptions, system: System, resident: bool) -> int:
    """Steps per dispatch: as asked, or by backend and network."""
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
    # their steps take so long on CPU that dispatching costs nothing; so a signal is heard soon
    if system.convolutional and jax.default_backend() == "cpu":
        return 1
    # so that checkpoints and pictures come when they are due
    return math.gcd(50, options.checkpoint_every, options.draw_every)


def check_batch(options: RunOptions, system: System, mesh: Mesh, examples: Examples) -> None:
    """Raises ValueError for a batch that the data or the devices cannot give."""
    size = system.images_per_step
    if size > examples.num_examples:
        raise ValueError(
            f"a step takes {size} images and the training set has {examples.num_examples}; "
            f"use a smaller --batch-size"
        )
    parallel.check_divisible(np.empty(size), parallel.EXAMPLES, mesh)
    own = size // (1 if options.parallel == "jit" else mesh.size)
    hands = size // options.batch_size * options.accumulate
    if own % hands:
        raise ValueError(
            f"with --parallel {options.parallel} each of {mesh.size} devices has {own} examples of "
            f"a step, which cannot be dealt into {hands} parts; use a --batch-size that is a "
            f"multiple of {mesh.size * options.accumulate}, or --parallel jit"
        )


# --- keys --------------------------------------------------------------------------------------


def streams(seed: int | Array) -> Key:
    """The four streams of a run [4]: parameters, training noise, order of the data, pictures."""
    return jax.random.split(jax.random.key(seed), 4)


def init_keys(options: RunOptions) -> Key:
    """The key of the initial parameters, [S] of them for S models."""
    return _of_models(options, 0)


def train_keys(options: RunOptions) -> Key:
    """The key of the training noise, [S] of them for S models."""
    return _of_models(options, 1)


def data_key(options: RunOptions) -> Key:
    """The key of the order of the data, which all models of a run share."""
    return streams(options.seed)[2]


def sample_key(options: RunOptions) -> Key:
    """The key of pictures and samples: the same noise at every step of a run."""
    return streams(options.seed)[3]


def _of_models(options: RunOptions, stream: int) -> Key:
    """Model i gets what a run of its own with seed + i would get."""
    if options.num_models == 1:
        return streams(options.seed)[stream]
    seeds = options.seed + jnp.arange(options.num_models)
    return jax.vmap(streams)(seeds)[:, stream]
