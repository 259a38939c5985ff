# SPDX-License-Identifier: MIT
"""The optimiser from a few options: Adam, a learning-rate schedule, clipping."""

import optax

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
            raise ValueError(f"unknown schedule {kind!r}; use one of {', '.join(SCHEDULES)}")
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
