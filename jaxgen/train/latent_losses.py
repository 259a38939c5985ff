# SPDX-License-Identifier: MIT
"""Objectives of latent diffusion's two stages, each for ONE example and ONE key, as in `losses`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import fields
from jaxgen.train import losses
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params


def autoencoder_kl_loss(
    encode: Callable[[Params, Array], tuple[Array, Array]],
    decode: Callable[[Params, Array], Array],
    kl_weight: float,
    edge_weight: float = 0.0,
) -> LossFn:
    """Builds the loss of the first stage: one image is rebuilt through a latent near N(0, I).

        loss = mean |d| + mean d^2 + edge_weight * (mean |d_x| + mean |d_y|)
               + kl_weight * mean KL(q(z | x) || N(0, I)),                      d = x - x_hat

    Means are over pixels and over entries of z; d_x and d_y are differences of neighbours along
    rows and columns, which make outlines count. Rombach et al. 2022 (arXiv:2112.10752), section
    3.1, "KL-reg.", with the image gradients of Mathieu et al. 2016 (arXiv:1511.05440), section 3.2,
    in place of its perceptual and adversarial terms: flat shapes have no texture to judge.
    encode: [H, W, 3] in [-1, 1] -> mean and log-variance [h, w, C]; decode: z -> x_hat.
    Raises ValueError for negative weights.
    """
    if kl_weight < 0:
        raise ValueError(f"kl_weight is {kl_weight}; use 0 (an autoencoder) or more")
    if edge_weight < 0:
        raise ValueError(f"edge_weight is {edge_weight}; use 0 (leaves the term out) or more")

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        x = example["image"]
        mean, logvar = encode(params, x)
        z = losses.reparameterize(key, mean, logvar)
        error = x - decode(params, z)

        l1, mse = jnp.mean(jnp.abs(error)), jnp.mean(error**2)
        along_y, along_x = (jnp.abs(jnp.diff(error, axis=axis)) for axis in (0, 1))
        edges = jnp.mean(along_y) + jnp.mean(along_x)
        kl = losses.kl_divergence(mean, logvar).sum()
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
    """Builds the loss of the second stage: the denoising error of one latent at one random time.

        x_t = signal_rate z + noise_rate eps,   loss = mean (target - predict(x_t, t, context))^2
        signal_rate = sqrt(alphas_cumprod[t]),   noise_rate = sqrt(1 - alphas_cumprod[t])

    target: eps ("epsilon"), Ho et al. 2020 (arXiv:2006.11239) eq. 14 and Rombach et al. 2022
    (arXiv:2112.10752) eq. 3, or v = signal_rate eps - noise_rate z ("v_prediction"), Salimans & Ho
    2022 (arXiv:2202.00512), appendix D. With probability `caption_dropout` the caption is the empty
    one, for classifier-free guidance: Ho & Salimans 2022 (arXiv:2207.12598), algorithm 1.

    example: "posterior", mean and log-variance of z in the sampler's scale [h, w, 2 C], from which
    each step draws a new z; "ids", the caption's token ids [T].
    predict: (params["unet"], x_t, t, context [T, E]) -> [h, w, C]; embed: (params["text_encoder"],
    ids) -> context. alphas_cumprod: one entry for each time; empty_caption: ids [T].
    Raises ValueError for another prediction type and for a dropout outside [0, 1).
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"prediction type {fields.shown(prediction_type)}; use epsilon or v_prediction"
        )
    if not 0 <= caption_dropout < 1:
        raise ValueError(f"caption dropout is {caption_dropout}; use 0 to below 1")
    signal_rates = np.sqrt(alphas_cumprod).astype(np.float32)
    noise_rates = np.sqrt(1 - alphas_cumprod).astype(np.float32)

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        z_key, eps_key, t_key, drop_key = jax.random.split(key, 4)
        mean, logvar = jnp.split(example["posterior"].astype(jnp.float32), 2, axis=-1)
        z = losses.reparameterize(z_key, mean, logvar)
        eps = jax.random.normal(eps_key, z.shape)
        t = jax.random.randint(t_key, (), 0, len(signal_rates))
        signal_rate, noise_rate = jnp.asarray(signal_rates)[t], jnp.asarray(noise_rates)[t]
        dropped = jax.random.bernoulli(drop_key, caption_dropout)
        ids = jnp.where(dropped, jnp.asarray(empty_caption), example["ids"])

        context = embed(params["text_encoder"], ids)
        predicted = predict(params["unet"], signal_rate * z + noise_rate * eps, t, context)
        target = eps if prediction_type == "epsilon" else signal_rate * eps - noise_rate * z
        mse = jnp.mean((target - predicted) ** 2)
        return mse, {"loss": mse}

    return loss
