# SPDX-License-Identifier: MIT
"""One loop runs any table.

Latents are float32 [B, H, W, C] whatever the model computes in. Every image owns its keys, and the
noise of image j in row i depends on that image's key and on i alone: not on the batch it is in.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.diffusion.table import NUM_MEMORIES, Table
from jaxgen.types import AnyArray, Array, Key

# (x [N, H, W, C], number of the table's row, int32 []) -> model output [N, H, W, C]
Denoise = Callable[[Array, Array], Array]


class NoiseKeys(NamedTuple):
    """The three independent streams of one image; each field [B]."""

    posterior: Key  # drawing the latent of a given image from its encoder's posterior
    initial: Key  # the noise a run starts from
    steps: Key  # fresh noise inside stochastic samplers


class Inpainting(NamedTuple):
    """Masked sampling keeps the given image outside the mask, at the noise level of each row."""

    mask: AnyArray  # [B, H, W, 1] in latent resolution, 1 where the picture is made anew
    clean: AnyArray  # [B, H, W, C] latent of the given image
    noise: AnyArray  # [B, H, W, C] the unit noise that the run started from


def noise_keys(keys: Key) -> NoiseKeys:
    """Splits one key per image, [B], into the three streams of every image."""
    split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    return NoiseKeys(split[:, 0], split[:, 1], split[:, 2])


def initial_noise(keys: Key, shape: tuple[int, ...]) -> Array:
    """Draws unit noise [B, *shape], each image from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def scaled_noise(table: Table, noise: AnyArray) -> Array:
    """Scales unit noise to the latent that a run from row 0 starts from, [B, H, W, C]."""
    return jnp.asarray(noise) * jnp.asarray(table.init_noise_sigma, jnp.float32)


def noised(table: Table, clean: AnyArray, noise: AnyArray) -> Array:
    """Noises an image's latent to what an image-to-image run starts from, [B, H, W, C].

    Unit noise in, scaled once; not to be combined with `scaled_noise`.
    """
    signal, amount = jnp.asarray(table.noising, jnp.float32)[table.start_row]
    return signal * clean + amount * noise


def at_times(model: Callable[[Array, Array], Array], table: Table) -> Denoise:
    """Calls a model of (x, t) with the time t of the table's row, float32 []."""
    times = jnp.asarray(table.t, jnp.float32)
    return lambda x, i: model(x, times[i])


def sample(
    denoise: Denoise,
    table: Table,
    x: Array,
    keys: Key | None = None,
    *,
    noise: AnyArray | None = None,
    inpainting: Inpainting | None = None,
) -> Array:
    """Runs rows [start_row, num_rows) of the table: the final latent, [B, H, W, C].

    x: the latent that start_row receives, from `scaled_noise` or `noised`. keys: [B], the `steps`
    stream; or noise: [N, B, H, W, C] given for every row of a run, which then draws nothing.
    Everything but `denoise` and the presence of the optional arguments is data: one compilation
    serves all samplers, numbers of steps and strengths.
    """

    def body(i: Array, state: Array) -> Array:
        return step(denoise, table, i, state, keys, noise=noise, inpainting=inpainting)[0]

    start, end = jnp.asarray(table.start_row), jnp.asarray(table.num_rows)
    return jax.lax.fori_loop(start, end, body, first_state(x))[0]


def step(
    denoise: Denoise,
    table: Table,
    i: Array,
    state: Array,
    keys: Key | None = None,
    *,
    noise: AnyArray | None = None,
    inpainting: Inpainting | None = None,
) -> tuple[Array, Array]:
    """Runs row i: the next state [1 + NUM_MEMORIES, B, H, W, C] and the estimate of x_0.

    state[0] is the latent, the rest are the memories; the arguments are those of `sample`.
    """
    out = denoise(seen(table, i, state), i)
    return advance(table, i, state, out, keys, noise=noise, inpainting=inpainting)


def seen(table: Table, i: Array, state: Array) -> Array:
    """The latents as the model sees them at row i, [B, H, W, C]."""
    return jnp.asarray(table.scale, jnp.float32)[i] * state[0]


def advance(
    table: Table,
    i: Array,
    state: Array,
    out: Array,
    keys: Key | None = None,
    *,
    noise: AnyArray | None = None,
    inpainting: Inpainting | None = None,
) -> tuple[Array, Array]:
    """Ends row i with the model's output [B, H, W, C]: next state and estimate, as `step` does."""
    update, denoised = (
        jnp.asarray(column, jnp.float32)[i] for column in (table.update, table.denoised)
    )
    x, out = state[0], out.astype(jnp.float32)
    fresh = _fresh_noise(keys, noise, i, x.shape[1:])
    # scaled and added one by one: accelerators round matrix products to half precision, and XLA's
    # CPU code for a sum over an axis takes 150 times as long
    inputs = [*state, out, fresh.astype(jnp.float32)]
    weights = update.reshape(*update.shape, *(1,) * x.ndim)
    state = jnp.asarray(sum(weights[:, k] * inputs[k][None] for k in range(len(inputs))))
    x0 = denoised[0] * x + denoised[1] * out
    if inpainting is not None:
        signal, amount = jnp.asarray(table.noising, jnp.float32)[i + 1]
        kept = signal * inpainting.clean + amount * inpainting.noise
        state = state.at[0].set((1 - inpainting.mask) * kept + inpainting.mask * state[0])
    return state, x0


def first_state(x: AnyArray) -> Array:
    """Builds the state that start_row receives: the latent, and empty memories."""
    x = jnp.asarray(x, jnp.float32)
    return jnp.concatenate([x[None], jnp.zeros((NUM_MEMORIES, *x.shape), jnp.float32)])


def _fresh_noise(
    keys: Key | None, noise: AnyArray | None, i: Array, shape: tuple[int, ...]
) -> Array:
    """Returns the noise of row i, [B, *shape]: from `noise`, or drawn from each image's key."""
    if noise is not None and keys is None:
        return jnp.asarray(noise)[i]
    if keys is None or noise is not None:
        raise ValueError("give either keys (one per image) or noise (one array per row), not both")

    def draw(key: Key) -> Array:
        return jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32)

    return jax.vmap(draw)(keys)
