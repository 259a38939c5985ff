# SPDX-License-Identifier: MIT
"""Optimisers from a handful of options: Adam, a learning-rate schedule, clipping."""

import optax

SCHEDULES = ("constant", "cosine", "linear")


def schedule(
    learning_rate: float, num_steps: int, kind: str = "constant", warmup_steps: int = 0
) -> optax.Schedule:
    """Learning rate by step: a linear rise over `warmup_steps`, then constant, or to 0 at the end.

    Raises ValueError for a learning rate or warm-up that is out of range, and an unknown kind.
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
            raise ValueError(f"unknown schedule {kind!r}; use one of {', '.join(SCHEDULES)}")
    if warmup_steps == 0:
        return main
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup_steps), main], [warmup_steps]
    )


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Adam, Kingma & Ba 2015 (arXiv:1412.6980); clip_norm > 0 first scales the whole gradient
    down to that global norm (Pascanu et al. 2013, arXiv:1211.5063)."""
    if clip_norm < 0:
        raise ValueError(f"clip norm {clip_norm}; use 0 (no clipping) or a positive norm")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(*clip, optax.adam(learning_rate, b1=b1, b2=b2))
