# SPDX-License-Identifier: MIT
"""The exercises of 04_stable_diffusion."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate

from checks import choice, number, same
from jaxgen.diffusion import config, guidance
from jaxgen.weights import hub


def evaluations(answer: int | None) -> None:
    """How many latents pass the UNet: twice the rows of the sampler's own table."""

    def truth() -> float:
        table = config.from_config(hub.open_checkpoint(hub.EMBEDDED).scheduler, "heun")(20, 0)
        return 2 * int(table.num_rows)

    hint = "Count the evaluations of one step, then the texts that each asks with."
    number(answer, truth, hint, rtol=0)


def spread(answer: float | None) -> None:
    """The spread of guided samples, by integrating the sampler's equation."""

    def truth() -> float:
        def slope(log_sigma: float) -> float:  # of log x over log sigma
            square = np.exp(2 * log_sigma)
            return square * (3 / (0.5**2 + square) - 2 / (2**2 + square))

        last = 12.0
        return np.exp(last - integrate.quad(slope, -12, last, limit=500)[0])

    number(answer, truth, "Use (10): each unit of w above 1 multiplies by s / S.")


def rescaled(answer: Callable | None) -> None:
    """Guidance with its contrast restored, as the sampler of the library has it."""
    keys = jax.random.split(jax.random.key(3), 3)
    cases = [
        (*jax.random.normal(key, (2, 8, 8, 4)), w) for key, w in zip(keys, (1, 3, 9), strict=True)
    ]

    def truth(empty, text, w):
        def outputs(x, i):
            return jnp.stack([empty, text])

        guided = guidance.guide(outputs, jnp.full(1, w), jnp.ones(1))
        return guided(jnp.zeros((1, 8, 8, 4)), 0)[0, 1, 2, 3]

    chosen = None if answer is None else lambda *case: answer(*case)[1, 2, 3]
    same(chosen, truth, cases, "Divide by the guided answer's deviation, multiply by the text's.")


def planted_fault(answer: str | None) -> None:
    """The line of the faulty sampler."""
    hint = "Follow one time through the loop: which factors does each line need?"
    choice("04: planted fault", answer, "6ae3c4deca61", hint)
