# SPDX-License-Identifier: MIT
"""Answers to the exercises of 02_vae are judged here."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from scipy import stats

import checks
from jaxgen.train import losses

MEAN, STD = np.array([1.0, -2.0, 0.0]), np.array([0.5, 1.0, 0.1])


def kl_of_posterior(answer: float | None) -> None:
    """The KL of the posterior of the exercise, by integrating its definition."""

    def truth() -> float:
        total, prior = 0.0, stats.norm()
        for mean, std in zip(MEAN, STD, strict=True):
            posterior = stats.norm(mean, std)
            z = np.linspace(mean - 12 * std, mean + 12 * std, 20_001)
            gap = posterior.logpdf(z) - prior.logpdf(z)
            total += np.trapezoid(posterior.pdf(z) * gap, z)
        return float(total)

    hint = "Equation (5), entry by entry: log sigma^2 of 0.5 is about -1.39."
    checks.number(answer, truth, hint)


def beta_loss(answer: Callable | None) -> None:
    """A function (log_likelihood, mean, logvar, beta) that gives the loss of a beta-VAE."""

    def truth(log_likelihood: float, mean: np.ndarray, logvar: np.ndarray, beta: float) -> float:
        return -log_likelihood + beta * float(losses.kl_divergence(mean, logvar))

    generator = np.random.default_rng(0)
    cases = [
        (-80.0 - beta, *jnp.asarray(generator.standard_normal((2, 20)), jnp.float32), beta)
        for beta in (0.0, 1.0, 4.0)
    ]
    hint = "One weight in front of one term; both terms are sums, and the loss is to be lowered."
    checks.same(answer, truth, cases, hint)


def free_bits(answer: Callable | None) -> None:
    """A function (kl, least) of the KL of each entry [D] that gives the term with free bits."""

    def truth(kl: np.ndarray, least: float) -> float:
        return sum(least if entry < least else float(entry) for entry in kl)

    cases = [(np.array([0.0, 0.2, 3.0]), least) for least in (0.0, 0.1, 0.5, 9.0)]
    hint = "Each entry costs at least `least`; only then are they added."
    checks.same(answer, truth, cases, hint)


def planted_fault(answer: int | None) -> None:
    """Which of the listed lines is wrong."""
    hint = "What is the standard deviation of z when logvar is the logarithm of the variance?"
    checks.choice("planted fault", answer, "060ddcdb15ba", hint)
