# SPDX-License-Identifier: MIT
"""Objectives of autoencoder, VAE and classifier, each for ONE example and ONE key.

`example` is a dict: "image" float32 [H, W, C] in [-1, 1], "label" int32 [] and "step" int32 [],
the number of updates so far. A loss returns (loss, metrics) as float32 scalars; the gradient step
averages both over the batch. Likelihood terms are in nats per image: they are summed over pixels
and channels, never averaged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen import fields
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params

Apply = Callable[..., Array]  # (params, input, label) -> output
Likelihood = Callable[[Params, Array, Array], Array]  # (params, decoder output, x) -> nats []


# --- parts of the equations -----------------------------------------------------------------


def reparameterize(key: Key, mean: Array, logvar: Array) -> Array:
    """Draws z = mean + exp(logvar / 2) * eps with eps ~ N(0, I).

    mean, logvar: [..., D] -> [..., D].  Kingma & Welling 2014 (arXiv:1312.6114), section 2.4.
    """
    return mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def kl_divergence(mean: Array, logvar: Array) -> Array:
    """KL from N(mean, exp(logvar)) to N(0, I), in nats, summed over the last axis.

    mean, logvar: [..., D] -> [...].   Kingma & Welling 2014 (arXiv:1312.6114), appendix B:
        -1/2 sum_d (1 + logvar - mean^2 - exp(logvar))
    """
    return -0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar), axis=-1)


def gaussian_log_density(x: Array, mean: Array, logvar: Array) -> Array:
    """Computes log N(x; mean, exp(logvar)) in nats, over the last axis: [..., D] -> [...]."""
    squared = (x - mean) ** 2 * jnp.exp(-logvar)
    return -0.5 * jnp.sum(jnp.log(2 * jnp.pi) + logvar + squared, axis=-1)


def unit_interval(x: Array) -> Array:
    """Converts pixels in [-1, 1] to probabilities in [0, 1]."""
    return (x + 1) / 2


def binarize(key: Key, x: Array) -> Array:
    """Draws every pixel as -1 or 1, with mean x in [-1, 1] and the shape of x.

    Dynamic binarization, Salakhutdinov & Murray 2008 (ICML), section 5: each use of an image draws
    it anew, in testing as in training.
    """
    return 2.0 * jax.random.bernoulli(key, unit_interval(x)).astype(x.dtype) - 1


def linear_warmup(num_steps: int, final: float = 1.0) -> Callable[[Array], Array]:
    """The weight of a term by step: it rises linearly from 0 to `final` in `num_steps` steps.

    step: int32 [] -> float32 []; num_steps = 0 gives `final` at every step. Raises ValueError for a
    negative number. As the weight of the KL: Bowman et al. 2016 (arXiv:1511.06349), section 3.1,
    Sonderby et al. 2016 (arXiv:1602.02282), section 2.3.
    """
    if num_steps < 0:
        raise ValueError(f"warm-up of {num_steps} steps; use 0 (none) or more")
    if num_steps == 0:
        return lambda step: jnp.float32(final)
    return lambda step: jnp.float32(final) * jnp.minimum(1.0, step / num_steps)


# --- likelihoods ----------------------------------------------------------------------------


def bernoulli(params: Params, logits: Array, x: Array) -> Array:
    """log p(x | z) of binary pixels, in nats per image; x in [-1, 1] is read as p = (x + 1) / 2.

    logits, x: [H, W, C] -> [].  Kingma & Welling 2014 (arXiv:1312.6114), appendix C.1, eq. 11:
        sum p log sigmoid(l) + (1 - p) log sigmoid(-l) = sum p l - softplus(l)
    For grey pixels this is a cross-entropy and no likelihood: binarize first.
    """
    p = unit_interval(x)
    return jnp.sum(p * logits - jax.nn.softplus(logits))


def gaussian(params: Params, mean: Array, x: Array) -> Array:
    """log N(x; mean, scale^2), the log-density of x in [-1, 1], in nats per image.

    mean, x: [H, W, C] -> [].  params["log_scale"]: [C], one learned scale per channel (Rybkin et
    al. 2021, arXiv:2006.13202, section 3.1).
    """
    log_scale = jnp.broadcast_to(params["log_scale"], x.shape)
    return gaussian_log_density(x, mean, 2 * log_scale).sum()


def logistic(params: Params, mean: Array, x: Array) -> Array:
    """log P(x) under a logistic density discretized to 256 levels, in nats per image.

        P(x) = sigmoid((x + d - mean) / s) - sigmoid((x - d - mean) / s),   d = 1/255

    where the lowest and the highest level, -1 and 1, take the tails. Kingma et al. 2016
    (arXiv:1606.04934), eq. 14. It is a likelihood of the 8-bit image, so bits per dimension are
    nats / (H W C log 2).  mean, x: [H, W, C] -> [];  params["log_scale"]: [C].
    """
    inverse = jnp.exp(-jnp.broadcast_to(params["log_scale"], x.shape))
    above = (x + 1 / 255 - mean) * inverse
    below = (x - 1 / 255 - mean) * inverse
    # log(sigmoid(a) - sigmoid(b)) = log_sigmoid(a) + log_sigmoid(-b) + log(1 - exp(b - a)):
    # differences of sigmoids cancel in float32, this form does not.
    middle = jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below)
    middle = middle + jnp.log(-jnp.expm1(below - above))
    inner = jnp.where(x > 1 - 1 / 255, jax.nn.log_sigmoid(-below), middle)
    return jnp.sum(jnp.where(x < -1 + 1 / 255, jax.nn.log_sigmoid(above), inner))


def bernoulli_mean(logits: Array) -> Array:
    """Converts logits to the mean of `bernoulli`, an image in [-1, 1]."""
    return 2 * jax.nn.sigmoid(logits) - 1


class Pixels(NamedTuple):
    """p(x | z) of the pixels, with what a training script needs to know of it."""

    log_likelihood: Likelihood
    mean: Callable[[Array], Array]  # decoder output -> the mean of p(x | z), in [-1, 1]
    is_binary: bool  # of pixels -1 and 1, so that grey images are to be binarized
    learns_scale: bool  # needs params["log_scale"] [C]
    is_of_bytes: bool  # the probability of an 8-bit image, and no density: has bits per dimension


def _unchanged(x: Array) -> Array:
    return x


LIKELIHOODS = {
    "bernoulli": Pixels(bernoulli, bernoulli_mean, True, False, False),
    "gaussian": Pixels(gaussian, _unchanged, False, True, False),
    "logistic": Pixels(logistic, _unchanged, False, True, True),
}


# --- objectives -----------------------------------------------------------------------------


def autoencoder_loss(
    encode: Apply, decode: Apply, reconstruction: str = "mse", noise: float = 0.0
) -> LossFn:
    """Builds the reconstruction error of one image through the latent vector.

    encode: (params, x [H, W, C], label) -> z [D]; decode: (params, z, label) -> [H, W, C].
    "mse": the mean over pixels of (x - x_hat)^2 with x in [-1, 1]; "bernoulli": cross-entropy in
    nats per image of the decoder's logits. With noise > 0 the encoder gets x + noise * N(0, I) but
    x_hat is compared with the clean x: the denoising autoencoder, Vincent et al. 2010 (JMLR 11),
    eq. 9.
    Raises ValueError for another reconstruction and for negative noise.
    """
    if reconstruction not in ("mse", "bernoulli"):
        raise ValueError(
            f"unknown reconstruction {fields.shown(reconstruction)}; use mse or bernoulli"
        )
    if noise < 0:
        raise ValueError(f"noise of standard deviation {noise}; use 0 (none) or more")

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        x, label = example["image"], example.get("label")
        corrupted = x + noise * jax.random.normal(key, x.shape) if noise else x
        output = decode(params["decoder"], encode(params["encoder"], corrupted, label), label)
        if reconstruction == "mse":
            mse = jnp.mean((x - output) ** 2)
            return mse, {"loss": mse, "mse": mse}
        recon = -bernoulli(params, output, x)
        mse = jnp.mean((x - bernoulli_mean(output)) ** 2)
        return recon, {"loss": recon, "recon_nats": recon, "mse": mse}

    return loss


def vae_loss(
    encode: Apply,
    decode: Apply,
    log_likelihood: Likelihood,
    beta: Callable[[Array], Array] | None = None,
    dynamic_binarization: bool = False,
) -> LossFn:
    """Builds the negative ELBO of one image, in nats, with one sample of z and the analytic KL.

        loss = -log p(x | z) + beta KL(q(z | x) || N(0, I)),   z = mean + exp(logvar / 2) eps

    Kingma & Welling 2014 (arXiv:1312.6114), eq. 7 and 10. beta(step) = 1, the default, is the bound
    itself; another constant is the beta-VAE (Higgins et al. 2017, eq. 4).
    encode: (params, x [H, W, C], label) -> [2 D], mean and logvar; decode: (params, z [D], label)
    -> what `log_likelihood` takes, [H, W, C].
    """
    beta = linear_warmup(0) if beta is None else beta

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        binarize_key, eps_key = jax.random.split(key)
        x, label = example["image"], example.get("label")
        if dynamic_binarization:
            x = binarize(binarize_key, x)

        mean, logvar = jnp.split(encode(params["encoder"], x, label), 2, axis=-1)
        z = reparameterize(eps_key, mean, logvar)
        output = decode(params["decoder"], z, label)

        recon = -log_likelihood(params, output, x)
        kl = kl_divergence(mean, logvar)
        weight = beta(example["step"])
        total = recon + weight * kl
        terms = {"recon_nats": recon, "kl_nats": kl, "neg_elbo_nats": recon + kl, "beta": weight}
        return total, {"loss": total, **terms}

    return loss


def log_weight(
    encode: Apply, decode: Apply, log_likelihood: Likelihood
) -> Callable[[Params, Array, Any, Key], Array]:
    """Builds a function that draws z ~ q(z | x) and gives log p(x, z) / q(z | x), in nats.

    (params, x [H, W, C], label, key) -> [].  The mean of its exponential is p(x): the importance
    weight of Burda et al. 2016 (arXiv:1509.00519), eq. 8.
    """

    def weight(params: Params, x: Array, label: Any, key: Key) -> Array:
        mean, logvar = jnp.split(encode(params["encoder"], x, label), 2, axis=-1)
        z = reparameterize(key, mean, logvar)
        prior = gaussian_log_density(z, jnp.zeros_like(z), jnp.zeros_like(z))
        posterior = gaussian_log_density(z, mean, logvar)
        return log_likelihood(params, decode(params["decoder"], z, label), x) + prior - posterior

    return weight


def classifier_loss(classify: Apply) -> LossFn:
    """Builds the cross-entropy of one image's label, in nats.

    classify: (params, x [H, W, C]) -> logits [num_classes].
    """

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        log_p = jax.nn.log_softmax(classify(params, example["image"]))
        nats = -log_p[example["label"]]
        correct = (jnp.argmax(log_p) == example["label"]).astype(jnp.float32)
        return nats, {"loss": nats, "accuracy": correct}

    return loss
