# SPDX-License-Identifier: MIT
"""Objectives of autoencoder, VAE and latent diffusion, each for ONE example and ONE key.

`example` is a dict: "image" float32 [H, W, C] in [-1, 1], "label" int32 [] and "step" int32 [],
the number of updates so far. A loss returns (loss, metrics) as float32 scalars; the gradient step
averages them over the batch. Likelihood terms are in nats per image: summed over pixels and
channels, never averaged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params

Apply = Callable[..., Array]  # (params, input, label) -> output
Likelihood = Callable[[Params, Array, Array], Array]  # (params, decoder output, x) -> nats []


# --- parts of the equations -----------------------------------------------------------------


def reparameterize(key: Key, mean: Array, logvar: Array) -> Array:
    """z = mean + exp(logvar / 2) * eps with eps ~ N(0, I).

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
    """log N(x; mean, exp(logvar)) in nats, summed over the last axis. [..., D] -> [...]."""
    squared = (x - mean) ** 2 * jnp.exp(-logvar)
    return -0.5 * jnp.sum(jnp.log(2 * jnp.pi) + logvar + squared, axis=-1)


def unit_interval(x: Array) -> Array:
    """Pixels in [-1, 1] as probabilities in [0, 1]."""
    return (x + 1) / 2


def binarize(key: Key, x: Array) -> Array:
    """A fresh Bernoulli draw of every pixel: x in [-1, 1] -> -1 or 1, mean x.

    Dynamic binarization, Salakhutdinov & Murray 2008; the test set is drawn anew too.
    """
    return 2.0 * jax.random.bernoulli(key, unit_interval(x)).astype(x.dtype) - 1


def linear_warmup(num_steps: int, final: float = 1.0) -> Callable[[Array], Array]:
    """Weight rising linearly from 0 at step 0 to `final` at `num_steps`; constant if 0.

    KL warm-up: Bowman et al. 2016 (arXiv:1511.06349), Sonderby et al. 2016 (arXiv:1602.02282).
    """
    if num_steps < 0:
        raise ValueError(f"warm-up of {num_steps} steps; use 0 (none) or more")
    return lambda step: (
        jnp.float32(final) * jnp.minimum(1.0, step / max(num_steps, 1)) ** (num_steps > 0)
    )


# --- likelihoods ----------------------------------------------------------------------------


def bernoulli(params: Params, logits: Array, x: Array) -> Array:
    """log p(x | z) of pixels with x in [-1, 1] read as probabilities, in nats per image.

    sum x log sigmoid(l) + (1 - x) log sigmoid(-l) = sum x l - softplus(l).  Kingma & Welling 2014
    appendix C.1. For grey pixels this is a cross-entropy and no likelihood: binarize first.
    """
    p = unit_interval(x)
    return jnp.sum(p * logits - jax.nn.softplus(logits))


def gaussian(params: Params, mean: Array, x: Array) -> Array:
    """log N(x; mean, scale^2) in nats per image, densities of x in [-1, 1].

    params["log_scale"]: [C], one learned scale per channel (Rybkin et al. 2021, arXiv:2006.13202).
    """
    log_scale = jnp.broadcast_to(params["log_scale"], x.shape)
    return gaussian_log_density(x, mean, 2 * log_scale).sum()


def logistic(params: Params, mean: Array, x: Array) -> Array:
    """log P(x) under a logistic density discretized to 256 levels, in nats per image.

    P(x) = sigmoid((x + d - mean) / s) - sigmoid((x - d - mean) / s), d = 1/255, with the open
    ends -1 and 1 taking the tails. Kingma et al. 2016 (arXiv:1606.04934), eq. 14; a likelihood of
    the 8-bit image, so bits per dimension = nats / (H W C log 2).  params["log_scale"]: [C].
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
    """The mean of `bernoulli` as an image in [-1, 1]."""
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
    """Reconstruction error of one image through the latent vector.

    "mse": the mean over pixels of (x - x_hat)^2 with x in [-1, 1]; "bernoulli": cross-entropy in
    nats per image, the decoder giving logits. noise > 0 feeds the encoder x + noise * N(0, I) and
    still asks for the clean x: the denoising autoencoder, Vincent et al. 2010 (JMLR 11), eq. 9.
    """
    if reconstruction not in ("mse", "bernoulli"):
        raise ValueError(f"unknown reconstruction {reconstruction!r}; use mse or bernoulli")
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
    """Negative ELBO of one image, in nats, with one sample of z and the analytic KL.

        loss = -log p(x | z) + beta KL(q(z | x) || N(0, I)),   z = mean + exp(logvar / 2) eps

    Kingma & Welling 2014 (arXiv:1312.6114), eq. 7 and 10; beta(step) = 1, the default, is the
    bound itself; another constant is the beta-VAE (Higgins et al. 2017). encode returns [2 D],
    mean and logvar.
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
    """log p(x, z) / q(z | x) for z ~ q(z | x): the importance weight whose mean is p(x).

    (params, x [H, W, C], label, key) -> [], nats.  Burda et al. 2016 (arXiv:1509.00519), eq. 8.
    """

    def weight(params: Params, x: Array, label: Any, key: Key) -> Array:
        mean, logvar = jnp.split(encode(params["encoder"], x, label), 2, axis=-1)
        z = reparameterize(key, mean, logvar)
        prior = gaussian_log_density(z, jnp.zeros_like(z), jnp.zeros_like(z))
        posterior = gaussian_log_density(z, mean, logvar)
        return log_likelihood(params, decode(params["decoder"], z, label), x) + prior - posterior

    return weight


def classifier_loss(classify: Apply) -> LossFn:
    """Cross-entropy in nats of one image's label; classify returns logits [num_classes]."""

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        log_p = jax.nn.log_softmax(classify(params, example["image"]))
        nats = -log_p[example["label"]]
        correct = (jnp.argmax(log_p) == example["label"]).astype(jnp.float32)
        return nats, {"loss": nats, "accuracy": correct}

    return loss


# --- latent diffusion -----------------------------------------------------------------------


def autoencoder_kl_loss(
    encode: Callable[[Params, Array], tuple[Array, Array]],
    decode: Callable[[Params, Array], Array],
    kl_weight: float,
    edge_weight: float = 0.0,
) -> LossFn:
    """The first stage: reconstruction of one image through a latent near N(0, I).

        loss = mean |d| + mean d^2 + edge_weight * (mean |d_x| + mean |d_y|)
               + kl_weight * mean KL(q(z | x) || N(0, I)),                      d = x - x_hat

    Means over pixels and over entries of z; d_x and d_y are differences of neighbours along rows
    and columns, which make outlines count. Rombach et al. 2022 (arXiv:2112.10752), section 3.1,
    "KL-reg.", with the image gradients of Mathieu et al. 2016 (arXiv:1511.05440), section 3.2, in
    place of its perceptual and adversarial terms: flat shapes have no texture to judge.
    encode: [H, W, 3] in [-1, 1] -> mean and log-variance [h, w, C]; decode: z -> x_hat.
    """
    if kl_weight < 0:
        raise ValueError(f"kl_weight is {kl_weight}; use 0 (an autoencoder) or more")
    if edge_weight < 0:
        raise ValueError(f"edge_weight is {edge_weight}; use 0 (leaves the term out) or more")

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        x = example["image"]
        mean, logvar = encode(params, x)
        z = reparameterize(key, mean, logvar)
        error = x - decode(params, z)

        l1, mse = jnp.mean(jnp.abs(error)), jnp.mean(error**2)
        along_y, along_x = (jnp.abs(jnp.diff(error, axis=axis)) for axis in (0, 1))
        edges = jnp.mean(along_y) + jnp.mean(along_x)
        kl = kl_divergence(mean, logvar).sum()
        total = l1 + mse + edge_weight * edges + kl_weight * kl / mean.size
        terms = {"l1": l1, "mse": mse, "edges": edges, "kl_nats": kl}
        return total, {"loss": total, **terms}

    return loss


def diffusion_loss(
    predict: Callable[[Params, Array, Array, Array], Array],
    embed: Callable[[Params, Array], Array],
    alphas_cumprod: np.ndarray,
    prediction_type: str,
    empty_caption: np.ndarray,
    caption_dropout: float,
) -> LossFn:
    """The second stage: the denoising error of one latent at one random time.

        x_t = sqrt(a_t) z + sqrt(1 - a_t) eps,   loss = mean (target - predict(x_t, t, caption))^2

    target: eps ("epsilon"), Ho et al. 2020 (arXiv:2006.11239) eq. 14 and Rombach et al. 2022
    (arXiv:2112.10752) eq. 3, or v = sqrt(a_t) eps - sqrt(1 - a_t) z ("v_prediction"), Salimans &
    Ho 2022 (arXiv:2202.00512), appendix D. With probability `caption_dropout` the caption is the
    empty one, for classifier-free guidance: Ho & Salimans 2022 (arXiv:2207.12598), algorithm 1.

    example: "image" is the posterior of z, mean and log-variance [h, w, 2 C] in the sampler's
    scale, and a z is drawn anew each time; "label" are the caption's token ids [T]. predict:
    (params["unet"], x_t, t, context [T, E]); embed: (params["text_encoder"], ids [T]) -> context.
    alphas_cumprod: [T]; empty_caption: ids [T].
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction type {prediction_type!r}; use epsilon or v_prediction")
    if not 0 <= caption_dropout < 1:
        raise ValueError(f"caption dropout is {caption_dropout}; use 0 to below 1")
    signal = np.sqrt(alphas_cumprod).astype(np.float32)
    noise = np.sqrt(1 - alphas_cumprod).astype(np.float32)

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        z_key, eps_key, t_key, drop_key = jax.random.split(key, 4)
        mean, logvar = jnp.split(example["image"].astype(jnp.float32), 2, axis=-1)
        z = reparameterize(z_key, mean, logvar)
        eps = jax.random.normal(eps_key, z.shape)
        t = jax.random.randint(t_key, (), 0, len(signal))
        a, b = jnp.asarray(signal)[t], jnp.asarray(noise)[t]
        dropped = jax.random.bernoulli(drop_key, caption_dropout)
        ids = jnp.where(dropped, jnp.asarray(empty_caption), example["label"])

        context = embed(params["text_encoder"], ids)
        predicted = predict(params["unet"], a * z + b * eps, t, context)
        target = eps if prediction_type == "epsilon" else a * eps - b * z
        mse = jnp.mean((target - predicted) ** 2)
        return mse, {"loss": mse}

    return loss
