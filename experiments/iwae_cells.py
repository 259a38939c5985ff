# SPDX-License-Identifier: MIT
"""The models and the training of `iwae_table.py`, as in the code of Burda et al. 2016."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.nn import autoencoder, functional
from jaxgen.train import augment, latent_models, losses, objectives, optimizer, step
from jaxgen.types import Array, Key, LossFn, Params, TrainState

NUM_STAGES = 8
SIZES = {1: (50,), 2: (100, 50)}  # entries of the stochastic layers, the one next to x first


class Cell(NamedTuple):
    """A cell of the table: both its objectives, and all seeds, are trained side by side."""

    layers: int
    k: int


def stage_rates() -> list[float]:
    """The learning rate of each stage, 1e-4 round(10^(1 - i / 7), 1) as the code has it."""
    return [1e-4 * round(10 ** (1 - i / (NUM_STAGES - 1)), 1) for i in range(NUM_STAGES)]


def learning_rate(steps_per_epoch: int) -> optax.Schedule:
    """The rate by step: that of stage i for 3^i epochs; the last one's from then on."""
    rates = stage_rates()
    ends = np.cumsum([3**i for i in range(NUM_STAGES - 1)]) * steps_per_epoch
    return optax.join_schedules([optax.constant_schedule(r) for r in rates], ends.tolist())


def networks(cell: Cell, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The networks of a cell by their names in the parameters."""
    sizes = SIZES[cell.layers]
    parts: dict[str, Any] = {
        "encoder": autoencoder.GaussianLayer(sizes[0], (200, 200)),
        "decoder": autoencoder.LogitLayer(image_shape, (200, 200)),
    }
    if cell.layers == 2:
        parts["encoder_top"] = autoencoder.GaussianLayer(sizes[-1], (100, 100))
        parts["decoder_top"] = autoencoder.GaussianLayer(sizes[0], (100, 100))
    return parts


def model_of(cell: Cell, image_shape: tuple[int, int, int]) -> latent_models.LatentModel:
    """The densities of a cell's model; its networks see pixels 0 and 1."""
    parts = {name: functional.apply(m) for name, m in networks(cell, image_shape).items()}

    def encode(params: Params, x: Array, label: Any) -> Array:
        return parts["encoder"](params, losses.unit_interval(x).reshape(-1))

    def decode(params: Params, z: Array, label: Any) -> Array:
        return parts["decoder"](params, z)

    prior = latent_models.normal_prior(SIZES[cell.layers][-1])
    if cell.layers == 1:
        return latent_models.one_layer(encode, decode, losses.bernoulli, prior)
    up, down = parts["encoder_top"], parts["decoder_top"]
    return latent_models.two_layers(encode, up, down, decode, losses.bernoulli, prior)


def init(cell: Cell, images: np.ndarray, key: Key) -> Params:
    """Parameters by Glorot's rule; the output's bias is the logit of the data's mean."""
    shape = images.shape[1:]
    sizes = SIZES[cell.layers]
    inputs = {"encoder": math.prod(shape), "decoder": sizes[0]}
    inputs |= {"encoder_top": sizes[0], "decoder_top": sizes[-1]}
    parts = networks(cell, shape)
    keys = jax.random.split(key, len(parts))
    params = {
        name: functional.init(module, k, jnp.zeros(inputs[name]))
        for (name, module), k in zip(parts.items(), keys, strict=True)
    }
    mean = np.clip(images.reshape(len(images), -1).mean(axis=0) / 255, 0.001, 0.999)
    params["decoder"]["head"]["bias"] = jnp.asarray(np.log(mean / (1 - mean)), jnp.float32)
    return params


def loss_of(model: latent_models.LatentModel, k: int, is_iwae: Array, size: int) -> LossFn:
    """The objective of one image, times the batch's size: the code sums over the batch."""

    def bound(weigh: objectives.Weigh, params: Params, z: Any) -> Array:
        log_w = weigh(params, z, params)
        iwae = jax.nn.logsumexp(log_w) - jnp.log(k)
        return size * jnp.where(is_iwae, iwae, jnp.mean(log_w))

    return augment.on_uint8(objectives.bound_loss(model, bound, k, dynamic_binarization=True))


def epoch_of(cell: Cell, images: np.ndarray, size: int) -> Any:
    """A compiled epoch of all runs of a cell: (states [S], images, keys [S], is_iwae [S]) -> states
    and the mean loss of each."""
    model, steps = model_of(cell, images.shape[1:]), len(images) // size
    tx = optimizer.adam_of_ones(learning_rate(steps))

    def one_run(state: TrainState, images: Array, key: Key, is_iwae: Array) -> tuple[Any, Array]:
        one = step.gradient_step(loss_of(model, cell.k, is_iwae, size), tx)

        def update(state: TrainState, i: Array) -> tuple[TrainState, Array]:
            batch = jax.lax.dynamic_slice_in_dim(images, i * size, size)  # in the file's order
            state, metrics = one(state, {"image": batch}, key)
            return state, metrics["loss"] / size

        state, values = jax.lax.scan(update, state, jnp.arange(steps))
        return state, jnp.mean(values)

    return jax.jit(jax.vmap(one_run, (0, None, 0, 0)), donate_argnums=0), tx
