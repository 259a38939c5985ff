# SPDX-License-Identifier: MIT
"""Answers to the exercises of 01_autoencoder are judged here."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import checks
from jaxgen.data import sets
from jaxgen.nn import autoencoder


def constant_loss(answer: float | None) -> None:
    """The loss of the best decoder that ignores z, on the 8x8 training digits."""

    def truth() -> float:
        x = sets.load("digits").images.reshape(-1, 64) / 127.5 - 1  # half the mean of pairs
        pairs = np.random.default_rng(0).permutation(len(x))
        return float(np.mean((x - x[pairs]) ** 2) / 2)

    hint = "The best constant is the mean image: what error is left around it?"
    checks.number(answer, truth, hint, rtol=0.05)


def num_parameters(answer: int | None) -> None:
    """The number of parameters of the dense 784-500-32 autoencoder."""

    def truth() -> float:
        parts = autoencoder.encoder_and_decoder("dense", 32, (28, 28, 1))
        inputs = (jnp.zeros((28, 28, 1)), jnp.zeros(32))
        trees = [
            jax.eval_shape(part.init, jax.random.key(0), x)
            for part, x in zip(parts, inputs, strict=True)
        ]
        return sum(leaf.size for leaf in jax.tree.leaves(trees))

    hint = "A dense layer has a weight for every input and output, and one bias for every output."
    checks.number(answer, truth, hint, rtol=1e-9)


def masked(answer: Callable | None) -> None:
    """A function (key, x) that blackens each pixel with probability 1/4."""
    if answer is None:
        return print("no answer yet: replace None by your function")
    x = jax.random.uniform(jax.random.key(1), (200, 200), minval=-0.9)
    y = np.asarray(answer(jax.random.key(2), x))
    if y.shape != x.shape:
        return print(f"wrong: the output has shape {y.shape}, the image {x.shape}")
    black, kept = y == -1, y == np.asarray(x)
    if not np.all(black | kept):
        return print("wrong: a pixel is neither black, which is -1, nor what it was")
    if not 0.24 < black.mean() < 0.26:
        return print(f"wrong: {100 * black.mean():.1f} % of the pixels are black")
    if np.array_equal(y, answer(jax.random.key(3), x)):
        return print("wrong: another key blackens the same pixels")
    print(f"right: {100 * black.mean():.1f} % of the pixels are black, others with another key")


def scaled_loss(answer: str | None) -> None:
    """Which optimiser takes the same steps when the loss is multiplied by 64."""
    hint = "Adam divides each gradient by the root of its own mean square."
    checks.choice("scaled loss", answer, "e4134390bbd5", hint)


def planted_fault(answer: int | None) -> None:
    """Which of the listed losses is wrong."""
    hint = "What does each one ask for when the encoder's input is noisy?"
    checks.choice("planted fault", answer, "b59f83103435", hint)
