# SPDX-License-Identifier: MIT
"""Which examples a step sees, for a data set that lies on the device: a function of (key, step)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxgen.train import parallel
from jaxgen.train.loop import Batches
from jaxgen.types import Array, Key


def epoch_order(key: Key, epoch: Array, num_examples: int, batch_size: int) -> Array:
    """Indices [N // B, B] of one epoch: every example at most once, the remainder left out."""
    steps = num_examples // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size).astype(jnp.int32)


def resident_batches(dataset: Any, batch_size: int, key: Key, mesh: Mesh) -> Batches:
    """(first step, n) -> (dataset, indices [n, B]), shuffled on the device, epoch after epoch.

    dataset: a dict of global device arrays [N, ...]. There is no reader to save: a run resumed at
    step s asks for step s. Raises ValueError if the set holds less than one batch.
    """
    num_examples = jax.tree.leaves(dataset)[0].shape[0]
    per_epoch = num_examples // batch_size
    if per_epoch == 0:
        raise ValueError(
            f"batch of {batch_size} is larger than the set of {num_examples}; use a smaller one"
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
    kept: dict[int, Array] = {}  # by epoch: the orders that the last call needed

    def batches(first: int, count: int) -> tuple[Any, Array]:
        epoch, start = divmod(first, per_epoch)
        epochs = range(epoch, (first + count - 1) // per_epoch + 1)
        orders = [kept[e] if e in kept else shuffled(key, e) for e in epochs]
        kept.clear()
        kept.update(zip(epochs, orders, strict=True))
        return dataset, rows(orders, start, count)

    return batches
