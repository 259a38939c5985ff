# SPDX-License-Identifier: MIT
"""What an experiment gives to a run, and what it is built from: System, optimizer, keys."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from jaxgen.data import sets
from jaxgen.runs.command_line import RunOptions
from jaxgen.train import optimizer, step
from jaxgen.types import Array, Key, Step


class Examples(NamedTuple):
    """The facts about the data that networks depend on, and a few held-out examples to draw."""

    num_examples: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    images: np.ndarray  # uint8 [K, H, W, C], from the test split; floats where encoded
    labels: np.ndarray  # int32 [K], or [K, T] token ids
    description: str = ""  # of both splits: what was read, and what was skipped


class System(NamedTuple):
    """What a script builds for a run, which knows nothing else of the networks."""

    init: Callable[[Key], Any]  # the state at step 0
    step: Step
    draw: Callable[[Any, Examples, Key], dict[str, Image.Image]]  # of one model's state
    images_per_step: int  # a GAN's discriminator may take several batches in one step
    progress_metrics: tuple[str, ...]  # names of the metrics that the progress line shows
    convolutional: bool
    # a sentence on a trained model that is not what its user wants; empty for any other
    remark: Callable[[Any, Examples, Key], str] = lambda state, examples, key: ""
    # writes into the new run folder what the state alone does not say, as a vocabulary
    keep: Callable[[Path], None] = lambda folder: None
    # arrays that every step takes whole under these names of its batch, and that no checkpoint
    # holds: the parameters that stay as they are while others are trained beside them
    shared: Mapping[str, Any] = MappingProxyType({})


MOST_STEPS = 2**31 - 1  # a state counts them in int32
Build = Callable[[Any, Examples], System]  # from the script's Config and its data
OpenSplit = Callable[[RunOptions, str], sets.Source]  # (options, "train" or "test")


def num_steps(options: RunOptions, examples: Examples, images_per_step: int) -> int:
    """Counts the steps of the whole run: --steps, or as many as cover --epochs.

    Raises ValueError for more than a state can count.
    """
    if options.epochs is None:
        return options.steps
    steps = max(1, round(options.epochs * examples.num_examples / images_per_step))
    if steps > MOST_STEPS:
        raise ValueError(
            f"--epochs {options.epochs:g} are {steps:.3g} steps; use fewer, at most {MOST_STEPS} "
            "steps"
        )
    return steps


def init_of(system: System, options: RunOptions) -> Callable[[Key], Any]:
    """Returns what makes the state at step 0, of one model or of several side by side."""
    return system.init if options.num_models == 1 else jax.vmap(system.init)


def step_of(system: System, options: RunOptions) -> Step:
    """Returns the step of one model or of several side by side."""
    return system.step if options.num_models == 1 else step.vmap_models(system.step)


def model(state: Any, options: RunOptions, i: int = 0) -> Any:
    """Takes out the state of model i, as it would be in a run of its own."""
    return state if options.num_models == 1 else jax.tree.map(lambda x: x[i], state)


def num_classes(examples: Examples, conditional: bool) -> int:
    """Counts the classes that the networks are conditioned on; 0 without --conditional.

    Raises ValueError when the data has no labels to condition on.
    """
    if conditional and not examples.class_names:
        raise ValueError("--conditional needs labels, and this data has none; use --no-conditional")
    return len(examples.class_names) if conditional else 0


def optimizer_of(
    options: RunOptions, num_steps: int, b1: float = 0.9
) -> optax.GradientTransformation:
    """Builds Adam with the schedule and the clipping that the options ask for."""
    rate = optimizer.schedule(
        options.learning_rate, num_steps, options.schedule, options.warmup_steps
    )
    return optimizer.adam(rate, b1, options.clip_norm)


def network_dtype(options: RunOptions) -> Any:
    """Returns the compute type of the networks; parameters, statistics and losses stay float32."""
    return jnp.dtype(options.dtype)


# --- keys --------------------------------------------------------------------------------------


def streams(seed: int | Array) -> Key:
    """Makes a run's four streams [4]: parameters, training noise, order of the data, pictures."""
    return jax.random.split(jax.random.key(seed), 4)


def init_keys(options: RunOptions) -> Key:
    """Makes the key of the initial parameters, or the keys [S] of S models."""
    return _of_models(options, 0)


def train_keys(options: RunOptions) -> Key:
    """Makes the key of the training noise, or the keys [S] of S models."""
    return _of_models(options, 1)


def data_key(options: RunOptions) -> Key:
    """Makes the key of the order of the data, which all models of a run share."""
    return streams(options.seed)[2]


def sample_key(options: RunOptions) -> Key:
    """Makes the key of pictures and samples: the same noise at every step of a run."""
    return streams(options.seed)[3]


def _of_models(options: RunOptions, stream: int) -> Key:
    """Makes the keys of a stream: model i gets what a run of its own with seed + i would get."""
    if options.num_models == 1:
        return streams(options.seed)[stream]
    seeds = jnp.asarray(options.seed + np.arange(options.num_models), jnp.uint32)
    return jax.vmap(streams)(seeds)[:, stream]
