# SPDX-License-Identifier: MIT
"""Autoencoders that are regularized: contractive, Wasserstein and sparse ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.train import neighbours
from jaxgen.train.losses import Apply
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params

Penalty = Callable[[Params, Array, Any, Key], Array]  # (params, x, label, key) -> []


def with_penalty(loss_fn: LossFn, name: str, penalty: Penalty, weight: float) -> LossFn:
    """Adds to the loss `weight` times a penalty of the clean image, which is the metric `name`.

    Raises ValueError for a weight that is not positive.
    """
    if not weight > 0:
        raise ValueError(f"a {name} penalty of weight {weight}; use a positive number")

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        loss_key, penalty_key = jax.random.split(key)
        value, metrics = loss_fn(params, example, loss_key)
        term = penalty(params, example["image"], example.get("label"), penalty_key)
        total = value + weight * term
        return total, metrics | {"loss": total, name: term}

    return loss


def contraction(encode: Apply) -> Penalty:
    """The squared Frobenius norm of the Jacobian of the code with respect to the image.

        |dz / dx|^2 = sum_{d, pixels} (dz_d / dx)^2

    Rifai et al. 2011 (ICML), eq. 6. It costs a backward pass for each entry of the code.
    """

    def penalty(params: Params, x: Array, label: Any, key: Key) -> Array:
        jacobian = jax.jacrev(lambda x: encode(params["encoder"], x, label))(x)  # [D, H, W, C]
        return jnp.sum(jacobian**2)

    return penalty


def sparse(encode: Apply, active: int) -> Apply:
    """Changes an encoder so that its code keeps the `active` largest entries; the others are 0.

    The k-sparse autoencoder, Makhzani & Frey 2014 (arXiv:1312.5663), algorithm 1: an L1 term would
    be evaded by a small code and large weights of the decoder. Gradients flow to the kept entries.
    Raises ValueError for less than one entry and, when called, for more than the code has.
    """
    if active < 1:
        raise ValueError(f"a code with {active} active entries; use 1 or more")

    def encode_sparsely(params: Params, x: Array, *label: Any) -> Array:
        z = encode(params, x, *label)
        if active > z.shape[-1]:
            raise ValueError(
                f"a code of {z.shape[-1]} entries cannot have {active} active ones; use less, or a "
                f"larger --latent-dim"
            )
        places = jax.lax.top_k(z, active)[1]
        mask = jnp.sum(jax.nn.one_hot(places, z.shape[-1]), axis=-2)
        return z * mask

    return encode_sparsely


def mmd(encode: Apply) -> Penalty:
    """The squared distance of the codes of the batch from draws of N(0, I), unbiased.

        1/(B(B-1)) sum_{i != j} (k(p_i, p_j) + k(z_i, z_j)) - 2/B^2 sum_{i,j} k(p_i, z_j)

    Tolstikhin et al. 2018 (arXiv:1711.01558), algorithm 2 and section 4: the kernel is the inverse
    multiquadratic k(a, b) = C / (C + |a - b|^2) with C = 2 D. One example's term is such that the
    mean over the batch is the above. Raises ValueError, when traced, for a batch of one.
    """

    def penalty(params: Params, x: Array, label: Any, key: Key) -> Array:
        z = encode(params["encoder"], x, label)
        p = jax.random.normal(key, z.shape)
        codes, draws = neighbours.all_examples(z), neighbours.all_examples(p)  # [B, D]
        size, scale = len(codes), 2.0 * z.shape[-1]
        if size < 2:
            raise ValueError("an MMD compares the codes of a batch; use a batch of 2 or more")

        def kernel(a: Array, many: Array) -> Array:  # [D], [B, D] -> the sum over the batch []
            return jnp.sum(scale / (scale + jnp.sum((a[None] - many) ** 2, axis=-1)))

        within = kernel(p, draws) + kernel(z, codes) - 2  # without i = j, where k is 1
        return within / (size - 1) - (kernel(p, codes) + kernel(z, draws)) / size

    return penalty
