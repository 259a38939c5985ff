# SPDX-License-Identifier: MIT
"""The optimiser from a few options: Adam, a learning-rate schedule, clipping."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen import fields
from jaxgen.types import Array, Params

SCHEDULES = ("constant", "cosine", "linear")


def schedule(
    learning_rate: float, num_steps: int, kind: str = "constant", warmup_steps: int = 0
) -> optax.Schedule:
    """The learning rate by step: it rises linearly over `warmup_steps` to `learning_rate`.

    Then, by kind, it stays ("constant"), or falls to 0 at step `num_steps`, in a line ("linear")
    or as half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts).
    Raises ValueError for a learning rate or warm-up that is out of range, and for another kind.
    """
    if not learning_rate > 0:  # not `<= 0`: nan is refused too
        raise ValueError(f"learning rate {learning_rate}; use a positive number")
    if not 0 <= warmup_steps <= num_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps; use 0 to the {num_steps} steps of the run"
        )
    rest = max(num_steps - warmup_steps, 1)
    match kind:
        case "constant":
            main = optax.constant_schedule(learning_rate)
        case "cosine":
            main = optax.cosine_decay_schedule(learning_rate, rest)
        case "linear":
            main = optax.linear_schedule(learning_rate, 0.0, rest)
        case _:
            raise ValueError(
                f"unknown schedule {fields.shown(kind)}; use one of {', '.join(SCHEDULES)}"
            )
    if warmup_steps == 0:
        return main
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup_steps), main], [warmup_steps]
    )


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Adam, Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1, with optax's other constants.

    clip_norm > 0 first scales the whole gradient down to at most that global norm (Pascanu et al.
    2013, arXiv:1211.5063, algorithm 1). Raises ValueError for a negative one.
    """
    if clip_norm < 0:
        raise ValueError(f"clip norm {clip_norm}; use 0 (no clipping) or a positive norm")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(*clip, optax.adam(learning_rate, b1=b1))


class AdamOfOnes(NamedTuple):
    """The state of `adam_of_ones`."""

    count: Array  # int32 [], updates so far
    first: Params  # moving average of the gradients
    second: Params  # of their squares


def adam_of_ones(
    learning_rate: optax.Schedule, b1: float = 0.99, b2: float = 0.999, epsilon: float = 1e-4
) -> optax.GradientTransformation:
    """Adam as in the code of Burda et al. 2016 (arXiv:1509.00519), whose second moment begins at 1.

        rate_t = rate sqrt(1 - b2^t) / (1 - b1^t)
        update_t = -rate_t m_(t-1) / (sqrt(v_(t-1)) + epsilon)

    m and v are Adam's moments, and those of the step before: the code replaces parameters and
    moments at once. So the first step moves nothing. The correction for the start is that of
    Kingma & Ba 2015 (arXiv:1412.6980, section 2), although v does not begin at 0: steps are smaller
    at first. b1 is 0.99 in the code and 0.9 in the paper.
    """

    def init(params: Params) -> AdamOfOnes:
        zeros, ones = (jax.tree.map(f, params) for f in (jnp.zeros_like, jnp.ones_like))
        return AdamOfOnes(jnp.zeros((), jnp.int32), zeros, ones)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, updates)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.second, updates)
        t = state.count + 1
        rate = learning_rate(state.count) * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        move = lambda m, v: -rate * m / (jnp.sqrt(v) + epsilon)  # noqa: E731
        moves = jax.tree.map(move, state.first, state.second)
        return moves, AdamOfOnes(t, first, second)

    return optax.GradientTransformation(init, update)
