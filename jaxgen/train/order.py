# SPDX-License-Identifier: MIT
"""The order of a data set that lies on the device: which examples a step sees, by (key, step)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxgen.train import parallel
from jaxgen.train.loop import Batches
from jaxgen.types import Array, Key


def epoch_order(key: Key, epoch: Array, num_examples: int, batch_size: int) -> Array:
    """Draws the indices int32 [N // B, B] of an epoch: every example once, but N % B left out.

    num_examples is N, batch_size is B; each epoch leaves out other examples.
    """
    steps = num_examples // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(jnp.int32)


def resident_batches(dataset: Any, batch_size: int, key: Key, mesh: Mesh) -> Batches:
    """Builds a function (first step, n) -> (dataset, indices [n, B]), shuffled anew in every epoch.

    dataset: a dict of global device arrays [N, ...]. There is no position to save: a run that
    resumes at step s calls it with step s. Raises ValueError if N < batch_size.
    """
    num_examples = jax.tree.leaves(dataset)[0].shape[0]
    per_epoch = num_examples // batch_size
    if per_epoch == 0:
        raise ValueError(
            f"batch of {batch_size} is larger than the data set of {num_examples}; use a smaller "
            f"batch"
        )
    everywhere = NamedSharding(mesh, jax.sharding.PartitionSpec())
    indices = NamedSharding(mesh, parallel.SCANNED[1])

    @partial(jax.jit, out_shardings=everywhere)
    def shuffled(key: Key, epoch: Array) -> Array:
        return epoch_order(key, epoch, num_examples, batch_size)

    @partial(jax.jit, static_argnums=2, out_shardings=indices)
    def rows(orders: list[Array], start: Array, count: int) -> Array:  # [N // B, B] each
        return jax.lax.dynamic_slice_in_dim(jnp.concatenate(orders), start, count)

    key = parallel.put(key, mesh)
    last_orders: dict[int, Array] = {}  # by epoch: those that the last call needed

    def batches(first: int, count: int) -> tuple[Any, Array]:
        epoch, start = divmod(first, per_epoch)
        epochs = range(epoch, (first + count - 1) // per_epoch + 1)
        orders = [last_orders[e] if e in last_orders else shuffled(key, e) for e in epochs]
        last_orders.clear()
        last_orders.update(zip(epochs, orders, strict=True))
        return dataset, rows(orders, start, count)

    return batches
