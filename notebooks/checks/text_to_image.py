# SPDX-License-Identifier: MIT
"""The exercises of 05_text_to_image_from_nothing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from checks import choice, number, same
from jaxgen.train import latent_losses
from jaxgen.weights import hub


def factor(answer: float | None) -> None:
    """The places of a picture for each place of its latent, by the autoencoder's own levels."""

    def truth() -> float:
        config = hub.open_checkpoint(hub.EMBEDDED).components["vae"].config
        return 4.0 ** (len(config["block_out_channels"]) - 1)

    number(answer, truth, "Places are height times width; channels do not count.")


def untrained_loss(answer: Callable | None) -> None:
    """The loss of a network that predicts 0, drawn many times from the library's own loss."""
    angles = np.pi / 2 * np.arange(1, 1001) / 1000

    @jax.jit
    def truth(m: float) -> jax.Array:
        loss = latent_losses.diffusion_loss(
            lambda params, x, t, ids: jnp.zeros_like(x), lambda params, ids: ids,
            np.cos(angles) ** 2, "v_prediction", np.zeros(1), 0.0,
        )  # fmt: skip
        x = jnp.full((8, 8, 4), jnp.sqrt(m))
        example = {"posterior": jnp.concatenate([x, jnp.full_like(x, -jnp.inf)], axis=-1)}
        params = {"unet": {}, "text_encoder": {}}
        keys = jax.random.split(jax.random.key(0), 4_000)
        losses = jax.vmap(lambda key: loss(params, example | {"ids": jnp.zeros(1)}, key)[0])(keys)
        return losses.mean()

    hint = "The loss is the mean of v squared; average cosine and sine squared over the times."
    same(answer, truth, [(0.25,), (0.7,), (2.0,)], hint, rtol=0.02)


def noise_loss(answer: Callable | None) -> None:
    """The loss of a network that predicts the noise, for two networks and two angles."""
    x, eps = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))

    def truth(predict: Callable, x: jax.Array, eps: jax.Array, angle: float) -> float:
        x_t = np.cos(angle) * np.asarray(x) + np.sin(angle) * np.asarray(eps)
        return float(np.mean((np.asarray(predict(x_t)) - np.asarray(eps)) ** 2))

    cases = [(lambda x_t: 0.3 * x_t, x, eps, 0.4), (lambda x_t: x_t**2, x, eps, 1.3)]
    same(answer, truth, cases, "Make x_t by (1) and compare the answer with eps.")


def planted_fault(answer: str | None) -> None:
    """The line of the faulty loss."""
    hint = "Look at the shape of everything that is random."
    choice("05: planted fault", answer, "bd714fc9fe06", hint)
