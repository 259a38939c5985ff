# SPDX-License-Identifier: MIT
"""Latent variable models p(x, z) with their posteriors q(z | x), as densities of ONE image.

The bounds of `objectives.py` and the estimates of `evaluate/likelihood.py` take them: one or two
stochastic layers, and two priors. Densities are in nats. Networks give a mean and a log-variance,
concatenated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.train import augment, losses
from jaxgen.train.losses import Apply, Likelihood
from jaxgen.types import Array, Key, Params

Latent = Any  # z [D], or a tuple of layers, the one next to the image first


class LatentModel(NamedTuple):
    """A model and its posterior; `label` is None or int32 [].

    The encoder's output is an argument of both parts of q, so that it is computed once for all
    draws, and once in the backward pass.
    """

    encode: Apply  # (params, x, label) -> moments of the layer next to the image [2 D]
    draw: Callable[[Params, Array, Key], Latent]  # (params, moments, key): z ~ q(z | x)
    log_posterior: Callable[[Params, Latent, Array], Array]  # (params, z, moments): log q(z | x)
    log_prior: Callable[[Params, Latent], Array]  # log p(z)
    log_likelihood: Callable[[Params, Latent, Array, Any], Array]  # log p(x | z)
    generate: Callable[[Params, Key], Array]  # a draw of p(z): the layer next to the image [D]


class Prior(NamedTuple):
    """A prior of one layer: its log-density of z [D], and its draws."""

    log_density: Callable[[Params, Array], Array]
    draw: Callable[[Params, Key], Array]


def log_weight(model: LatentModel, params: Params, key: Key, x: Array, label: Any) -> Array:
    """log p(x, z) / q(z | x) in nats of a draw z ~ q(z | x): Burda et al. 2016, eq. 8."""
    moments = model.encode(params, x, label)
    z = model.draw(params, moments, key)
    joint = model.log_likelihood(params, z, x, label) + model.log_prior(params, z)
    return joint - model.log_posterior(params, z, moments)


def weight_of_images(model: LatentModel, binarize: bool) -> Callable[..., Array]:
    """Builds the log weight of one uint8 image, (params, example, key, weight_key) -> [].

    `key` draws its pixels as 0 or 1 where `binarize` says so, `weight_key` draws z.
    """

    def weigh(params: Params, example: Any, key: Key, weight_key: Key) -> Array:
        x = augment.to_unit_range(example["image"])
        x = losses.binarize(key, x) if binarize else x
        return log_weight(model, params, weight_key, x, example["label"])

    return weigh


def normal_prior(latent_dim: int) -> Prior:
    """Builds the prior N(0, I)."""

    def log_density(params: Params, z: Array) -> Array:
        return losses.gaussian_log_density(z, jnp.zeros_like(z), jnp.zeros_like(z))

    return Prior(log_density, lambda params, key: jax.random.normal(key, (latent_dim,)))


def vamp_prior(encode: Apply) -> Prior:
    """Mixes the posteriors of K learned images, Tomczak & Welling 2018 (arXiv:1705.07120).

        p(z) = 1/K sum_k q(z | u_k)    (eq. 10)

    params["pseudo_inputs"]: the u_k [K, H, W, C], clipped to [-1, 1] as pixels are.
    """

    def moments(params: Params) -> tuple[Array, Array]:
        images = jnp.clip(params["pseudo_inputs"], -1, 1)
        one = lambda u: encode(params["encoder"], u, None)  # noqa: E731
        return _split(jax.vmap(one)(images))  # [K, D] each

    def log_density(params: Params, z: Array) -> Array:
        of_each = losses.gaussian_log_density(z[None], *moments(params))
        return jax.nn.logsumexp(of_each) - jnp.log(len(of_each))

    def draw(params: Params, key: Key) -> Array:
        place_key, eps_key = jax.random.split(key)
        mean, logvar = moments(params)
        k = jax.random.randint(place_key, (), 0, len(mean))
        return losses.reparameterize(eps_key, mean[k], logvar[k])

    return Prior(log_density, draw)


def one_layer(
    encode: Apply, decode: Apply, log_likelihood: Likelihood, prior: Prior
) -> LatentModel:
    """Builds the VAE of Kingma & Welling 2014 with any prior: q(z | x) is N(mean, exp(logvar))."""

    def draw(params: Params, moments: Array, key: Key) -> Array:
        return losses.reparameterize(key, *_split(moments))

    def log_posterior(params: Params, z: Array, moments: Array) -> Array:
        return losses.gaussian_log_density(z, *_split(moments))

    def of_pixels(params: Params, z: Array, x: Array, label: Any) -> Array:
        return log_likelihood(params, decode(params["decoder"], z, label), x)

    return LatentModel(
        _of_encoder(encode), draw, log_posterior, prior.log_density, of_pixels, prior.draw
    )


def two_layers(
    encode: Apply,
    encode_top: Callable[[Params, Array], Array],
    decode_top: Callable[[Params, Array], Array],
    decode: Apply,
    log_likelihood: Likelihood,
    top: Prior,
) -> LatentModel:
    """Two stochastic layers, Burda et al. 2016 (arXiv:1509.00519), section 2 and figure 2; z is
    (h1, h2).

        q(h1, h2 | x) = q(h1 | x) q(h2 | h1),    p(x, h1, h2) = p(h2) p(h1 | h2) p(x | h1)

    encode_top: (params, h1) -> moments of h2; decode_top: (params, h2) -> moments of h1.
    """

    def draw(params: Params, moments: Array, key: Key) -> Latent:
        first_key, second_key = jax.random.split(key)
        h1 = losses.reparameterize(first_key, *_split(moments))
        of_top = _split(encode_top(params["encoder_top"], h1))
        return h1, losses.reparameterize(second_key, *of_top)

    def log_posterior(params: Params, z: Latent, moments: Array) -> Array:
        of_top = _split(encode_top(params["encoder_top"], z[0]))
        first = losses.gaussian_log_density(z[0], *_split(moments))
        return first + losses.gaussian_log_density(z[1], *of_top)

    def log_prior(params: Params, z: Latent) -> Array:
        moments = _split(decode_top(params["decoder_top"], z[1]))
        return top.log_density(params, z[1]) + losses.gaussian_log_density(z[0], *moments)

    def of_pixels(params: Params, z: Latent, x: Array, label: Any) -> Array:
        return log_likelihood(params, decode(params["decoder"], z[0], label), x)

    def generate(params: Params, key: Key) -> Array:
        top_key, eps_key = jax.random.split(key)
        moments = decode_top(params["decoder_top"], top.draw(params, top_key))
        return losses.reparameterize(eps_key, *_split(moments))

    return LatentModel(_of_encoder(encode), draw, log_posterior, log_prior, of_pixels, generate)


def _of_encoder(encode: Apply) -> Apply:
    """Lifts a function of the encoder's parameters to one of all."""
    return lambda params, x, label: encode(params["encoder"], x, label)


def _split(moments: Array) -> tuple[Array, Array]:
    """Splits [..., 2 D] into mean and log-variance."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, logvar
