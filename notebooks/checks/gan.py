# SPDX-License-Identifier: MIT
"""Checks of the exercises of 03_gan."""

from collections.abc import Callable

import jax
import numpy as np
from scipy import optimize

import checks
from jaxgen.train import adversarial


def best_logit(answer: float | None) -> None:
    """The logit that the discriminator's own loss is smallest at, found by search."""
    game = adversarial.objective("minimax")

    def cost(logit: float) -> float:
        return float(0.8 * game.discriminator(logit, 0.0) + 0.2 * game.discriminator(0.0, logit))

    checks.number(
        answer, lambda: optimize.minimize_scalar(cost, (-5, 5)).x,
        "Only the ratio of both densities matters, see (6); a logit is no probability.",
    )  # fmt: skip


def loudness(answer: float | None) -> None:
    """The ratio of both slopes, by automatic differentiation."""

    def slope(name: str) -> float:
        return float(jax.grad(adversarial.objective(name).generator)(-7.0))

    checks.number(
        answer, lambda: slope("non_saturating") / slope("minimax"),
        "Divide the second slope of (8) by the first one, at f = -7.",
    )  # fmt: skip


def symmetric_least_squares(
    for_d: Callable[[float, float], float] | None, for_g: Callable[[float], float] | None
) -> None:
    """Both functions; the truth is the library's game for labels 0 and 1, moved and stretched."""
    if for_d is None or for_g is None:
        return print("no answer yet: replace both None by functions")
    game, logits = adversarial.objective("least_squares"), np.linspace(-2, 2, 5)
    pairs = [(real, fake) for real in logits for fake in logits]

    def both(real: float, fake: float) -> float:
        return for_d(real, fake) + 0.1 * for_g(fake)

    def truth(real: float, fake: float) -> float:
        d_part = 4 * game.discriminator((real + 1) / 2, (fake + 1) / 2)
        return float(d_part + 0.1 * game.generator(fake + 1))

    checks.same(both, truth, pairs, "Each square is (logit - its label)^2 / 2.")


def faulty_line(answer: int | None) -> None:
    """The number of the line."""
    checks.choice("gan faulty line", answer, "150e516544d2", "What has one value for each pair?")
