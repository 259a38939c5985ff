# SPDX-License-Identifier: MIT
"""Augmentation of ONE image with ONE key, on the device and differentiable.

x: float32 [H, W, C] in [-1, 1] -> the same shape and, but for `differentiable`, the same range.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen import fields
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params


def to_unit_range(image: Array) -> Array:
    """Converts a uint8 image in [0, 255] to float32 in [-1, 1], of the same shape: 0 becomes -1."""
    return image.astype(jnp.float32) * (2 / 255) - 1


def on_uint8(loss_fn: LossFn, augment: Callable[[Key, Array], Array] | None = None) -> LossFn:
    """Lifts a loss of float images to uint8 ones: converts them, then augments if asked to.

    Data on the device, and what is sent to it, is four times smaller than with float32 images.
    """

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        image = to_unit_range(example["image"])
        if augment is not None:
            augment_key, key = jax.random.split(key)
            image = augment(augment_key, image)
        return loss_fn(params, example | {"image": image}, key)

    return loss


def flip(key: Key, x: Array) -> Array:
    """Mirrors the image left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), x[:, ::-1], x)


def shift(key: Key, x: Array, fraction: float = 0.125) -> Array:
    """Moves the image by up to `fraction` of each side, either way; new pixels are -1 (black)."""
    height, width, channels = x.shape
    dy, dx = round(height * fraction), round(width * fraction)
    row_key, column_key = jax.random.split(key)
    row = jax.random.randint(row_key, (), 0, 2 * dy + 1)
    column = jax.random.randint(column_key, (), 0, 2 * dx + 1)
    padded = jnp.pad(x, ((dy, dy), (dx, dx), (0, 0)), constant_values=-1.0)
    return jax.lax.dynamic_slice(padded, (row, column, 0), (height, width, channels))


def differentiable(key: Key, x: Array) -> Array:
    """DiffAugment: colour, translation and cutout, Zhao et al. 2020 (arXiv:2006.10738), section 4.

    Brightness, saturation and contrast are as in the paper's code release; the image moves by up to
    an eighth, and a square of half its side becomes 0 (grey). Values may leave [-1, 1].
    """
    bright_key, saturation_key, contrast_key, shift_key, cut_key = jax.random.split(key, 5)
    x = x + jax.random.uniform(bright_key, minval=-0.5, maxval=0.5)
    grey = jnp.mean(x, axis=-1, keepdims=True)
    x = grey + (x - grey) * jax.random.uniform(saturation_key, minval=0.0, maxval=2.0)
    mean = jnp.mean(x)
    x = mean + (x - mean) * jax.random.uniform(contrast_key, minval=0.5, maxval=1.5)
    return _cutout(cut_key, shift(shift_key, x))


def _cutout(key: Key, x: Array) -> Array:
    """Sets a square of half the image's side to 0, its centre anywhere in the image."""
    height, width, _ = x.shape
    row_key, column_key = jax.random.split(key)
    row = jax.random.randint(row_key, (), 0, height + 1)  # centre of the square, between pixels
    column = jax.random.randint(column_key, (), 0, width + 1)
    inside_rows = jnp.abs(jnp.arange(height) + 0.5 - row) < height // 4
    inside_columns = jnp.abs(jnp.arange(width) + 0.5 - column) < width // 4
    hole = inside_rows[:, None, None] & inside_columns[None, :, None]
    return jnp.where(hole, 0.0, x)


AUGMENTATIONS = {"none": None, "flip": flip, "shift": shift}


def by_name(name: str) -> Callable[[Key, Array], Array] | None:
    """Looks up a name in `AUGMENTATIONS`. Raises ValueError for one that is not there."""
    if name not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise ValueError(f"unknown augmentation {fields.shown(name)}; use one of {known}")
    return AUGMENTATIONS[name]
