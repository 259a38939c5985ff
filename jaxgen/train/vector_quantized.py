# SPDX-License-Identifier: MIT
"""The VQ-VAE: a code of K learned vectors, its loss, and the moving average that learns them.

van den Oord et al. 2017 (arXiv:1711.00937). The codebook is a part of the parameters,
params["codebook"], that no gradient moves. A gradient carries what its moving average needs of
the batch: a term of value 0 is linear in the codebook's parameters, with the statistics as slopes.
So the mean over microbatches, devices and hosts, and a checkpoint, are those of any parameter.
"""

import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.train import neighbours
from jaxgen.train.losses import Apply
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params


class Codebook(NamedTuple):
    """K vectors, and the moving averages that they are the quotient of."""

    vectors: Array  # [K, D]
    counts: Array  # [K], places of an image at which each is the nearest
    sums: Array  # [K, D], of the encoder's outputs at these places


def init_codebook(key: Key, size: int, features: int, places: int) -> Codebook:
    """Makes a codebook of standard normal vectors, each with an equal share of the places."""
    vectors = jax.random.normal(key, (size, features))
    counts = jnp.full((size,), places / size)
    return Codebook(vectors, counts, vectors * counts[:, None])


def nearest(vectors: Array, z: Array) -> Array:
    """Finds the number of the vector [K, D] nearest to each z [..., D], int32 [...] (eq. 1)."""
    squares = jnp.sum(vectors**2, axis=-1)
    products = z @ vectors.T  # |z|^2 is left out: it is the same for all
    return jnp.argmin(squares.reshape((1,) * (z.ndim - 1) + (-1,)) - 2 * products, axis=-1)


def quantize(vectors: Array, z: Array) -> tuple[Array, Array]:
    """Finds the nearest vectors [..., D], through which gradients reach z, and their numbers.

    Straight-through: the value is e, the gradient that of z (section 3.2).
    """
    numbers = nearest(vectors, z)
    return z + jax.lax.stop_gradient(vectors[numbers] - z), numbers


def vq_loss(encode: Apply, decode: Apply, commitment: float = 0.25) -> LossFn:
    """Builds the error of one image through its quantized code, and the commitment to that code.

        mean (x - x_hat)^2 + commitment mean (z - sg[e])^2        (eq. 3; its second term, which
                                                       moves e, is the moving average's work)

    encode: (params, x, label) -> z [h, w, D]; decode: (params, [h, w, D], label) -> [H, W, C].
    Metrics: `mse` with x in [-1, 1], `commitment`, and `perplexity`, exp of the entropy of the
    vectors' use in the batch: K when all are used alike. Raises ValueError for a negative weight.
    """
    if not commitment >= 0:
        raise ValueError(f"a commitment of weight {commitment}; use 0 (none) or more")

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        x, label = example["image"], example.get("label")
        codebook = jax.lax.stop_gradient(params["codebook"])
        z = encode(params["encoder"], x, label)
        quantized, numbers = quantize(codebook.vectors, z)
        mse = jnp.mean((x - decode(params["decoder"], quantized, label)) ** 2)
        distance = jnp.mean((z - codebook.vectors[numbers]) ** 2)

        choices = jax.nn.one_hot(numbers.ravel(), len(codebook.vectors))  # [h w, K]
        carrier = _carrier(params["codebook"], z.reshape(-1, z.shape[-1]), choices, example["step"])
        usage = jnp.mean(neighbours.all_examples(jnp.mean(choices, axis=0)), axis=0)
        entropy = -jnp.sum(usage * jnp.log(jnp.maximum(usage, 1e-30)))
        value = mse + commitment * distance
        terms = {"mse": mse, "commitment": distance, "perplexity": jnp.exp(entropy)}
        return value + carrier, {"loss": value, **terms}

    return loss


def _carrier(codebook: Codebook, z: Array, choices: Array, step: Array) -> Array:
    """Makes a term of value 0 whose gradient in the codebook holds the batch's statistics.

    z: [T, D], choices: [T, K]. The gradient of the counts is how often each vector was chosen, that
    of the sums is the sum of z there. That of the vectors is outputs of the encoder from the batch,
    with which dead vectors may begin again: others at every step, the same for all examples.
    """
    z = jax.lax.stop_gradient(z)
    outputs = neighbours.all_examples(z).reshape(-1, z.shape[-1])  # [B T, D]
    key = jax.random.fold_in(jax.random.key(0), step)  # the order of the data is random already
    places = jax.random.randint(key, (len(codebook.vectors),), 0, len(outputs))
    statistics = Codebook(outputs[places], jnp.sum(choices, axis=0), choices.T @ z)

    def slope(value: Array, statistic: Array) -> Array:
        return jnp.sum((value - jax.lax.stop_gradient(value)) * statistic)

    return jnp.sum(jnp.stack([*map(slope, codebook, statistics)]))


def moved_codebook(
    codebook: Codebook, statistics: Codebook, decay: float, restart_below: float
) -> Codebook:
    """Moves the codebook by one batch, from the statistics that `vq_loss` gives as its gradient.

        counts = decay counts + (1 - decay) n,   sums = decay sums + (1 - decay) sum z,
        vectors = sums / counts                              (appendix A.1, eq. 6 to 8)

    A vector that is used less than `restart_below` of an equal share is dead: it becomes an output
    of the encoder (Dhariwal et al. 2020, arXiv:2005.00341, section 3.1) with an equal share.
    """
    share = jnp.sum(statistics.counts) / len(statistics.counts)
    counts = decay * codebook.counts + (1 - decay) * statistics.counts
    sums = decay * codebook.sums + (1 - decay) * statistics.sums
    dead = counts < restart_below * share
    counts = jnp.where(dead, share, counts)
    sums = jnp.where(dead[:, None], share * statistics.vectors, sums)
    # one that was never used has no quotient and stays
    quotients = sums / jnp.maximum(counts, 1e-30)[:, None]
    return Codebook(jnp.where(counts[:, None] > 0, quotients, codebook.vectors), counts, sums)


def optimizer(
    tx: optax.GradientTransformation, decay: float = 0.99, restart_below: float = 0.03
) -> optax.GradientTransformation:
    """Applies `tx` to the networks' parameters and `moved_codebook` to params["codebook"].

    Raises ValueError for numbers out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"a codebook's decay of {decay}; use 0 to below 1")
    if not 0 <= restart_below < 1:
        raise ValueError(f"restarts below {restart_below} of an equal share; use 0 to below 1")

    def networks(params: Params) -> Params:
        return {name: part for name, part in params.items() if name != "codebook"}

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        moves, state = tx.update(networks(updates), state, networks(params))
        codebook = params["codebook"]
        target = moved_codebook(codebook, updates["codebook"], decay, restart_below)
        change = {"codebook": jax.tree.map(jnp.subtract, target, codebook)}
        return typing.cast(dict[str, Any], moves) | change, state

    return optax.GradientTransformation(lambda params: tx.init(networks(params)), update)
