# SPDX-License-Identifier: MIT
"""The names that all rooms share: array aliases, the two contracts, and the training state."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
AnyArray = jax.Array | np.ndarray  # on a device, or still on the host
Key = jax.Array  # a typed key made by jax.random.key
Params = Any  # a pytree of float32 arrays, as linen's init returns
Metrics = dict[str, Array]  # flat, scalar, lower-case names with known units
Example = dict[str, Any]  # one example: {"image": [H, W, C], "label": [], "step": [], ...}
Batch = Any  # the same with a leading batch axis on every leaf
DATA_AXIS = "data"  # the device axis that a batch is divided over, in meshes, pmap and shard_map


class LossFn(Protocol):
    """The objective for ONE example and ONE key; the gradient step averages it over the batch."""

    def __call__(self, params: Params, example: Example, key: Key) -> tuple[Array, Metrics]: ...


class Step(Protocol):
    """One pure update; the loop, `scan_steps` and `parallelize` know nothing else of a model.

    `axis` is the name of the device axis when the step runs inside pmap or shard_map on one shard
    of the batch, and None when the step sees the global batch.
    """

    def __call__(
        self, state: Any, batch: Batch, key: Key, axis: str | None = None
    ) -> tuple[Any, Metrics]: ...


class TrainState(NamedTuple):
    """Everything that one optimiser changes. It holds no key: noise is a function of `step`."""

    step: Array  # int32 [], number of updates so far
    params: Params
    opt_state: Any
