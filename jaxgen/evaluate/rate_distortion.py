# SPDX-License-Identifier: MIT
"""The rate-distortion curve of a VAE: one point for each weight beta of its KL.

    rate        E KL(q(z | x) || p(z))     nats that z tells about an image, at most
    distortion  E -log p(x | z)            nats that are missing then

Alemi et al. 2018 (arXiv:1711.00464), section 3: beta is minus the slope of the curve, and beta = 1
minimises rate + distortion, the negative bound.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.evaluate import likelihood
from jaxgen.train import step
from jaxgen.types import Array, Key, LossFn, Params, TrainState

LossOf = Callable[[Array], LossFn]  # beta [] -> the loss of one example
STEPS_AT_ONCE = 500


class Point(NamedTuple):
    """What one model does, in nats per image, with standard errors over the images."""

    beta: float
    rate: float
    rate_error: float
    distortion: float
    distortion_error: float


def train(
    loss_of: LossOf,
    params: Params,
    tx: optax.GradientTransformation,
    betas: Sequence[float],
    dataset: dict[str, Any],
    num_steps: int,
    batch_size: int,
    key: Key,
) -> Params:
    """Trains a model for each beta, side by side, from the same parameters: leaves [B, ...].

    dataset: a dict of arrays [N, ...]. The models see the same batches and noise, so that their
    differences are those of beta. No state is kept on the way: it is a matter of minutes. Raises
    ValueError for a beta that is not positive, and for models that are not finite any more.
    """
    if not betas or not all(0 < beta < np.inf for beta in betas):
        raise ValueError(f"betas {tuple(betas)}; give one or more positive numbers")
    some = _steps(loss_of, tx, betas, batch_size)
    first = step.init_state(params, tx)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(betas), *jnp.shape(x))), first)
    order_key, noise_key = jax.random.split(key)
    on_device = jax.tree.map(jnp.asarray, dataset)
    for start in range(0, num_steps, STEPS_AT_ONCE):  # so that a signal is heard in between
        count = min(STEPS_AT_ONCE, num_steps - start)
        states = some(states, on_device, order_key, noise_key, jnp.int32(count))
        _check_finite(states, betas, start + count)
    return states.params


def _steps(
    loss_of: LossOf, tx: optax.GradientTransformation, betas: Sequence[float], batch_size: int
) -> Callable[[TrainState, dict, Key, Key, Array], TrainState]:
    """Compiles (states, dataset, order_key, noise_key, count) -> states `count` steps later.

    States have leaves [B, ...]: one for each beta.
    """

    @jax.jit
    def some(
        states: TrainState, dataset: dict, order_key: Key, noise_key: Key, count: Array
    ) -> TrainState:
        size = len(next(iter(dataset.values())))

        def run(state: TrainState, beta: Array) -> TrainState:
            one = step.gradient_step(loss_of(beta), tx)

            def update(_: Array, state: TrainState) -> TrainState:
                rows_key = jax.random.fold_in(order_key, state.step)
                rows = jax.random.randint(rows_key, (batch_size,), 0, size)
                batch = {name: x[rows] for name, x in dataset.items()}
                return one(state, batch, noise_key)[0]

            return jax.lax.fori_loop(0, count, update, state)

        return jax.vmap(run)(states, jnp.float32(betas))

    return some


def _check_finite(states: TrainState, betas: Sequence[float], done: int) -> None:
    """Raises ValueError naming the betas whose states have a number that is not finite."""
    leaves = [np.asarray(x).reshape(len(betas), -1) for x in jax.tree.leaves(states)]
    finite = np.all([np.isfinite(x).all(axis=1) for x in leaves], axis=0)
    if not finite.all():
        names = ", ".join(f"{beta:g}" for beta in np.asarray(betas)[~finite])
        raise ValueError(f"not finite after step {done} with beta {names}; lower the learning rate")


def points(
    loss_fn: LossFn, params: Params, betas: Sequence[float], test: dict[str, Any], key: Key
) -> list[Point]:
    """Measures the points of models [B, ...] on a test set, by a loss's kl_nats and recon_nats.

    Raises ValueError for a model whose figures are not finite.
    """
    result = []
    for i, beta in enumerate(betas):
        model = jax.tree.map(lambda x, i=i: x[i], params)
        terms = likelihood.mean_terms(loss_fn, model, test, key)
        point = Point(float(beta), *terms["kl_nats"], *terms["recon_nats"])
        if not np.isfinite(point).all():
            raise ValueError(f"beta {beta:g} is at {point[1:]} nats; lower the learning rate")
        result.append(point)
    return result
