# SPDX-License-Identifier: MIT
"""Checks of the exercises of 06_functional_training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import checks
from jaxgen.measure import products
from jaxgen.train import step
from jaxgen.types import Array, Key


def shared_in_pairs(answer: float | None) -> None:
    """The ratio of standard deviations, from the covariance matrix of the 128 losses."""

    def truth() -> float:
        independent, pairs = np.eye(128), np.kron(np.eye(64), np.ones((2, 2)))
        return float(np.sqrt(pairs.mean() / independent.mean()))

    checks.number(answer, truth, "Add up all entries of the covariance matrix, as (1) does.")


def keys_of_a_shard(answer: Callable[[Key, int, int, int], Array] | None) -> None:
    """The keys of all shards together have to be those that the library's step hands out."""
    if answer is None:
        return print("no answer yet: replace None by your function")
    key, count = jax.random.key(11), 4
    for t in (0, 5):
        expected = _draws_of_the_library(key, t, 2 * count)
        shards = [jax.vmap(jax.random.normal)(answer(key, t, d, count)) for d in range(2)]
        if not np.array_equal(np.concatenate(shards), expected):
            return print("wrong: not the keys of one device. Fold in the step, then the place.")
    print("right: the same keys on one device and on two")


def _draws_of_the_library(key: Key, t: int, size: int) -> np.ndarray:
    """A draw by each example's key, read off the gradient of a linear loss."""

    def linear(params: Array, example: dict, key: Key) -> tuple[Array, dict]:
        value = params[example["place"]] * jax.random.normal(key)
        return value, {"loss": value}

    import optax

    one = step.gradient_step(linear, optax.sgd(1.0))
    state = step.init_state(jnp.zeros(size), optax.sgd(1.0))._replace(step=jnp.int32(t))
    state, _ = one(state, {"place": jnp.arange(size)}, key)
    return -size * np.asarray(state.params)


def operations(answer: float | None) -> None:
    """The products in a step of one dense layer, counted in its equations."""

    def loss(kernel: Array, x: Array) -> Array:
        return jnp.sum(x @ kernel)

    shapes = jnp.zeros((784, 500)), jnp.zeros((128, 784))
    checks.number(
        answer, lambda: products.flops(jax.value_and_grad(loss), *shapes),
        "A product of [m, n] with [n, k] has 2 m n k; the backward pass has one more here.",
        rtol=1e-6,
    )  # fmt: skip


def faulty_line(answer: int | None) -> None:
    """The number of the line."""
    checks.choice(
        "functional training faulty line",
        answer,
        "8e3000037aab",
        "Which draws do devices 0 and 1 make?",
    )
