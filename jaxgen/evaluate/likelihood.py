# SPDX-License-Identifier: MIT
"""Likelihood bounds over a whole test set: means with standard errors, in nats per image.

Test images are numpy dicts {"images": [N, ...], "labels": [N]}; example i gets the key
fold_in(key, i), so a figure does not depend on how the set is cut into batches.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.types import Array, Key, LossFn, Params

MeanAndError = tuple[float, float]
# (params, example, key, weight_key) -> log w []; `key` is the same for all samples of an image
LogWeight = Callable[[Params, dict, Key, Key], Array]
CHUNK = 50  # importance samples at once


def mean_terms(
    loss_fn: LossFn, params: Params, test: dict[str, Any], key: Key, batch_size: int = 500
) -> dict[str, MeanAndError]:
    """Every metric of a per-example loss, averaged over the test set, with its standard error.

    Compiled once for each function `loss_fn`: make that once for all models.
    """
    parts = [_terms(loss_fn, params, key, start, *cut) for start, cut in _batches(test, batch_size)]
    return {
        name: _mean_and_error(np.concatenate([np.asarray(part[name]) for part in parts]))
        for name in parts[0]
    }


def importance_nll(
    log_weight: LogWeight,
    params: Params,
    test: dict[str, Any],
    key: Key,
    num_samples: int,
    batch_size: int = 50,
    chunk: int = CHUNK,
) -> MeanAndError:
    """-log p(x) by importance sampling, and its standard error over images.

        log p(x) ~ log 1/k sum_k w_k,   w = p(x, z) / q(z | x),   z ~ q(z | x)

    Burda et al. 2016 (arXiv:1509.00519), eq. 8: a lower bound on log p(x) that tightens with k.
    Samples are taken `chunk` at a time, so memory does not grow with k. Compiled once for each
    function `log_weight`.
    """
    chunk = min(chunk, num_samples)
    if num_samples % chunk:
        raise ValueError(f"{num_samples} samples are not a multiple of {chunk}; use one")
    parts = [
        np.asarray(_nll(log_weight, num_samples, chunk, params, key, start, *cut))
        for start, cut in _batches(test, batch_size)
    ]
    return _mean_and_error(np.concatenate(parts))


@partial(jax.jit, static_argnames="loss_fn")
def _terms(
    loss_fn: LossFn, params: Params, key: Key, start: Array, images: Array, labels: Array
) -> dict[str, Array]:
    """The metrics of a batch whose first example is number `start` of the test set."""
    keys = _keys(key, start, len(images))
    examples = {"image": images, "label": labels}

    def one(example: dict, key: Key) -> dict[str, Array]:
        return loss_fn(params, example | {"step": jnp.int32(0)}, key)[1]

    return jax.vmap(one)(examples, keys)


@partial(jax.jit, static_argnames=("log_weight", "num_samples", "chunk"))
def _nll(
    log_weight: LogWeight,
    num_samples: int,
    chunk: int,
    params: Params,
    key: Key,
    start: Array,
    images: Array,
    labels: Array,
) -> Array:
    """-log p(x) of a batch, as `_terms` takes it."""

    def one(params: Params, example: dict, key: Key) -> Array:
        example_key, samples_key = jax.random.split(key)

        def some(i: Array) -> Array:
            keys = jax.random.split(jax.random.fold_in(samples_key, i), chunk)
            same_key = jax.random.clone(example_key)  # all samples see one draw of the image
            weights = jax.vmap(lambda k: log_weight(params, example, same_key, k))(keys)
            return jax.nn.logsumexp(weights)

        sums = jax.lax.map(some, jnp.arange(num_samples // chunk))
        return jnp.log(num_samples) - jax.nn.logsumexp(sums)

    examples = {"image": images, "label": labels}
    return jax.vmap(one, (None, 0, 0))(params, examples, _keys(key, start, len(images)))


def _keys(key: Key, start: Array, count: int) -> Key:
    """The keys of examples `start` to `start + count`, [count]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(count))


def _batches(test: dict[str, Any], size: int) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """The number of the first example of each batch, and its images and labels."""
    for start in range(0, len(test["images"]), size):
        yield start, (test["images"][start : start + size], test["labels"][start : start + size])


def _mean_and_error(values: np.ndarray) -> MeanAndError:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values, dtype=np.float64)), float(error)
