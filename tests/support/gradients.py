# SPDX-License-Identifier: MIT
"""Gradients beside central differences, and a small VAE whose gradients are taken."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

SHAPE = (3, 2, 2)  # H, W, C
SIZE = 12


def linear(outputs, inputs, seed):
    rng = np.random.default_rng(seed)
    return {
        "w": 0.4 * rng.standard_normal((outputs, inputs)),
        "b": 0.1 * rng.standard_normal(outputs),
    }


def encode(params, x, label):
    return jnp.tanh(params["w"] @ x.ravel() + params["b"])


def decode(params, z, label):
    return (params["w"] @ jnp.sin(z) + params["b"]).reshape(SHAPE)


def parameters(outputs=4):
    return {
        "encoder": linear(outputs, SIZE, 0),
        "decoder": linear(SIZE, 2, 1),
        "log_scale": np.array([-1.0, 0.3]),
    }


def image(seed=2):
    """Levels of an 8-bit image, with both ends among them."""
    levels = np.random.default_rng(seed).integers(0, 256, SHAPE)
    levels[0, 0], levels[1, 1] = 0, 255
    return levels / 127.5 - 1


def gradient_error(loss_fn, params, example):
    """Largest difference between jax.grad and central differences, relative to the largest slope.

    float64, so that differences of step 1e-5 are good to about 1e-9.
    """
    with jax.enable_x64(True):
        example = jax.tree.map(jnp.asarray, example)
        flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))
        value = lambda flat: loss_fn(unravel(flat), example, jax.random.key(3))[0]  # noqa: E731
        grad = jax.jit(jax.grad(value))(flat)
        steps, values = 1e-5 * jnp.eye(len(flat)), jax.jit(jax.vmap(value))
        ahead, behind = values(flat[None] + steps), values(flat[None] - steps)
        differences = (ahead - behind) / 2e-5
        return float(jnp.max(jnp.abs(grad - differences)) / jnp.max(jnp.abs(grad)))
