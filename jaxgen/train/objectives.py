# SPDX-License-Identifier: MIT
"""The objectives of a VAE by name, and those of k samples of z: k-sample VAE, IWAE and DReG.

The latter take any `LatentModel`. With the weights w_i = p(x, z_i) / q(z_i | x), z_i ~ q(z | x):

    k_sample   1/k sum_i log w_i        Kingma & Welling 2014 (arXiv:1312.6114), eq. 6
    iwae       log 1/k sum_i w_i        Burda et al. 2016 (arXiv:1509.00519), eq. 8
    dreg       the value of iwae        Tucker et al. 2019 (arXiv:1810.04003), eq. 8: a gradient of
                                        the same mean, with less variance for the encoder
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen import fields
from jaxgen.train import divergences, losses
from jaxgen.train.latent_models import Latent, LatentModel
from jaxgen.train.losses import Apply, Likelihood
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params


class Posterior(NamedTuple):
    """What log q(z | x) is computed from, beside z."""

    params: Params
    moments: Array  # what the encoder says of x [2 D]


class Weigh(NamedTuple):
    """log w [k] of draws z [k, ...]: log p(x | z) - beta (log q(z | x) - log p(z))."""

    log_weights: Callable[[Params, Latent, Posterior], Array]
    posterior: Posterior
    beta: Array  # []

    def __call__(self, params: Params, z: Latent, fixed_posterior: bool = False) -> Array:
        """fixed_posterior: log q(z | x) has a gradient by z alone, none by q's parameters."""
        posterior = jax.lax.stop_gradient(self.posterior) if fixed_posterior else self.posterior
        return self.log_weights(params, z, posterior)


Bound = Callable[[Weigh, Params, Latent], Array]  # -> what is maximised []


def k_sample(weigh: Weigh, params: Params, z: Latent) -> Array:
    """The mean of log w_i: a bound that does not tighten with k; only its noise falls."""
    return jnp.mean(weigh(params, z))


def iwae(weigh: Weigh, params: Params, z: Latent) -> Array:
    """The log of the mean of w_i: a bound that rises with k to log p(x) (theorem 1)."""
    log_w = weigh(params, z)
    return jax.nn.logsumexp(log_w) - jnp.log(len(log_w))


def dreg(weigh: Weigh, params: Params, z: Latent) -> Array:
    """The value of `iwae` with the doubly reparameterized gradient.

    With v_i = w_i / sum_j w_j the decoder's gradient is that of IWAE, sum_i v_i d log w_i / dtheta,
    and the encoder's is

        sum_i v_i (1 - beta (1 - v_i)) (d log w_i / dz_i) (dz_i / dphi)

    which is eq. 8 of the paper, with v_i^2, where beta = 1. The score d log q(z | x) / dphi at a
    fixed z is left out, so its parameters get no gradient. In IWAE's it has the weight -beta v_i,
    and so the mean of -beta (dv_i / dz_i) (dz_i / dphi), with dv_i = v_i (1 - v_i) d log w_i.
    """
    log_w = jax.lax.stop_gradient(weigh(params, z))
    shares = jax.nn.softmax(log_w)
    factors = 1 - weigh.beta * (1 - shares)
    z = jax.tree.map(lambda leaf: _scale_gradient(leaf, factors), z)
    surrogate = jnp.sum(shares * weigh(params, z, fixed_posterior=True))
    value = jax.nn.logsumexp(log_w) - jnp.log(len(log_w))
    return value + surrogate - jax.lax.stop_gradient(surrogate)


BOUNDS: dict[str, Bound] = {"k_sample": k_sample, "iwae": iwae, "dreg": dreg}


def bound_loss(
    model: LatentModel,
    bound: Bound,
    num_samples: int,
    beta: Callable[[Array], Array] | None = None,
    dynamic_binarization: bool = False,
) -> LossFn:
    """Builds the negative bound of one image with `num_samples` draws of z, in nats.

    beta(step) weighs log q(z | x) - log p(z), as in `losses.vae_loss`; 1, the default, is the bound
    itself. All draws see one binarization of the image. Metrics: `loss`, `beta`, and the parts of
    the one-sample bound, averaged over the draws: `recon_nats`, `kl_nats`, `neg_elbo_nats`.
    Raises ValueError for less than one sample.
    """
    if num_samples < 1:
        raise ValueError(f"a bound of {num_samples} samples; use 1 or more")
    beta = losses.linear_warmup(0) if beta is None else beta

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        binarize_key, draw_key = jax.random.split(key)
        x, label = example["image"], example.get("label")
        x = losses.binarize(binarize_key, x) if dynamic_binarization else x
        keys = jax.random.split(draw_key, num_samples)
        posterior = Posterior(params, model.encode(params, x, label))
        z = jax.vmap(lambda k: model.draw(params, posterior.moments, k))(keys)
        weight = beta(example["step"])

        def log_weights(params: Params, z: Latent, posterior: Posterior) -> Array:
            log_p, kl = _terms(model, params, z, posterior, x, label)
            return log_p - weight * kl

        value = -bound(Weigh(log_weights, posterior, weight), params, z)
        log_p, kl = map(jnp.mean, _terms(model, params, z, posterior, x, label))
        parts = {"recon_nats": -log_p, "kl_nats": kl, "neg_elbo_nats": kl - log_p, "beta": weight}
        return value, {"loss": value, **parts}

    return loss


VAE_OBJECTIVES = ("elbo", "free_bits", "beta_tc", *BOUNDS)
OF_WHOLE_BATCH = ("free_bits", "beta_tc")  # a batch that is accumulated in parts is another one


class VaeParts(NamedTuple):
    """What the losses of a VAE are made of."""

    encode: Apply  # (params, x, label) -> mean and logvar of the first layer
    decode: Apply
    log_likelihood: Likelihood
    model: LatentModel  # the same as densities, with any prior or second layer
    num_examples: int  # of the training set
    beta: Callable[[Array], Array] | None = None
    dynamic_binarization: bool = False


def vae_objective(
    name: str, parts: VaeParts, num_samples: int = 1, free_nats: float = 0.0
) -> LossFn:
    """Builds the loss with this name; num_samples is for the bounds, free_nats for free bits.

    Raises ValueError for a name that is not in `VAE_OBJECTIVES`.
    """
    networks = (parts.encode, parts.decode, parts.log_likelihood)
    options = (parts.beta, parts.dynamic_binarization)
    match name:
        case "elbo":
            return losses.vae_loss(*networks, *options)
        case "free_bits":
            return divergences.divergence_loss(
                *networks, divergences.free_bits(free_nats), *options
            )
        case "beta_tc":
            correlation = divergences.total_correlation(parts.num_examples)
            return divergences.divergence_loss(*networks, correlation, *options)
        case "k_sample" | "iwae" | "dreg":
            return bound_loss(parts.model, BOUNDS[name], num_samples, *options)
    raise ValueError(
        f"unknown VAE objective {fields.shown(name)}; use one of {', '.join(VAE_OBJECTIVES)}"
    )


def check_prior(name: str, option: str) -> None:
    """Raises ValueError where `option` asks for a prior whose KL has no closed form."""
    if name not in BOUNDS:
        raise ValueError(
            f"objective {name} needs the KL to N(0, I); with {option} use one of "
            f"{', '.join(BOUNDS)}"
        )


def _terms(
    model: LatentModel, params: Params, z: Latent, posterior: Posterior, x: Array, label: Any
) -> tuple[Array, Array]:
    """Computes log p(x | z) and log q(z | x) - log p(z) of every draw z: [k] each."""

    def one(z: Latent) -> tuple[Array, Array]:
        log_q = model.log_posterior(posterior.params, z, posterior.moments)
        return model.log_likelihood(params, z, x, label), log_q - model.log_prior(params, z)

    return jax.vmap(one)(z)


def _scale_gradient(x: Array, factors: Array) -> Array:
    """Returns x [k, ...] itself, with its gradient multiplied by the factors [k]."""
    constant = jax.lax.stop_gradient(x)
    return constant + factors.reshape(-1, *(1,) * (x.ndim - 1)) * (x - constant)
