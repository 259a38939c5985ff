# SPDX-License-Identifier: MIT
"""One loop runs any table; guidance is a wrapper around the model.

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


class Projection(NamedTuple):
    """Adaptive projected guidance, Sadat et al. 2024 (arXiv:2410.02416) eq. 7, 8 and 10.

    Of the estimate of x_0, guidance moves what is parallel to it less, and never by more than a
    norm. It acts against burnt colours at large scales. With a momentum, the change is that of this
    row plus momentum times the sum of before.
    """

    denoised: AnyArray  # [N, 2] the estimate of x_0 = c[0] * (scale * latent) + c[1] * output
    parallel: AnyArray  # [B] the share of the parallel part that is kept; 1 is all
    limit: AnyArray  # [B] the largest norm of a change; infinite is none
    momentum: AnyArray | None = None  # [B]; usual are negative ones


class Guidance(NamedTuple):
    """Says how the outputs for an image's texts become one; `guide` describes the fields."""

    scale: AnyArray  # [B] or [N, B]
    rescale: AnyArray  # the same
    projection: Projection | None = None
    weights: AnyArray | None = None  # [B, P]
    # [B] or [N, B] of perturbed attention guidance, Ahn et al. 2024 (arXiv:2403.17377): the last
    # row of each image is its positive text's with self-attention left out, and the output is
    # moved away from it
    perturbed: AnyArray | None = None


def projection(
    table: Table, parallel: AnyArray, limit: AnyArray, momentum: AnyArray | None = None
) -> Projection:
    """Builds the projection of a run: parallel, limit and momentum per image, [B]."""
    scale = jnp.asarray(table.scale, jnp.float32)
    denoised = jnp.asarray(table.denoised, jnp.float32)
    return Projection(
        denoised / jnp.stack([scale, jnp.ones_like(scale)], 1), parallel, limit, momentum
    )


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


def guide(
    denoise: Denoise,
    guidance_scale: AnyArray,
    guidance_rescale: AnyArray,
    projection: Projection | None = None,
    weights: AnyArray | None = None,
) -> Denoise:
    """Classifier-free guidance doubles the batch: Ho & Salimans 2022 (arXiv:2207.12598) eq. 6.

    guidance_scale, guidance_rescale: [B], per image, or [N, B], per row of the table and image;
    scale s gives out_neg + s (out_pos - out_neg). `denoise` receives 2 B latents in pairs, [image 0
    negative, image 0 positive, image 1 negative, ...], so a batch sharded over devices stays where
    it is; its texts must be ordered alike. Where no image is guided (scale 1 for all) leave the
    wrapper out: half the work.

    weights: [B, P], of P positive texts for each image, of which `denoise` then receives 1 + P
    rows: out_pos - out_neg becomes sum_p weight_p (out_p - out_neg), Liu et al. 2022
    (arXiv:2206.01714) eq. 11. guidance_rescale: Lin et al. 2023 (arXiv:2305.08891) eq. 15 and 16,
    0 is off.
    """
    groups = 2 if weights is None else 1 + jnp.shape(weights)[1]
    rule = Guidance(guidance_scale, guidance_rescale, projection, weights)
    return lambda x, i: combine(rule, x, i, denoise(repeated(x, groups), i))[0]


def repeated(x: Array, groups: int) -> Array:
    """Repeats the latents of each image for the texts that guide it: [B, ...] -> [B * G, ...]."""
    return jnp.stack([x] * groups, axis=1).reshape(groups * x.shape[0], *x.shape[1:])


def combine(
    rule: Guidance, x: Array, i: Array, out: Array, momentum: Array | None = None
) -> tuple[Array, Array | None]:
    """Combines the outputs [B * G, H, W, C] of row i for latents [B, H, W, C], as in `guide`.

    momentum: the sum of earlier changes of x_0, [B, H, W, C], where the projection has one; the
    next such sum is returned.
    """
    out = out.astype(jnp.float32).reshape(x.shape[0], -1, *x.shape[1:])
    texts = out if rule.perturbed is None else out[:, :-1]
    if texts.shape[1] == 1:
        positive = combined = texts[:, 0]
    else:
        positive, combined, momentum = _by_texts(rule, x, i, texts, momentum)
    if rule.perturbed is not None:
        combined = combined + _per_image(rule.perturbed, i) * (positive - out[:, -1])
    rescale = _per_image(rule.rescale, i)
    return (rescale * _contrast(positive, combined) + (1 - rescale)) * combined, momentum


def _by_texts(
    rule: Guidance, x: Array, i: Array, out: Array, momentum: Array | None
) -> tuple[Array, Array, Array | None]:
    """The positive output, the one guided by negative and positive texts [B, G, ...], and the next
    sum of changes."""
    negative, positive = out[:, 0], out[:, 1]
    direction = positive - negative
    if rule.weights is not None:
        parts = jnp.asarray(rule.weights, jnp.float32).reshape(len(out), -1, 1, 1, 1)
        direction = jnp.sum(parts * (out[:, 1:] - negative[:, None]), axis=1)
        positive = negative + direction
    scale, own = _per_image(rule.scale, i), rule.projection
    if own is None:
        return positive, negative + scale * direction, momentum
    change = direction
    if own.momentum is not None and momentum is not None:
        model = jnp.asarray(own.denoised, jnp.float32)[i, 1]  # d x_0 / d output
        before = _per_image(own.momentum, i) * momentum / jnp.where(model == 0, 1, model)
        change = direction + before
        momentum = model * change
    kept = _projected(own, x, i, positive, change)
    # out_pos + (s - 1) kept; where all is kept, the same bits as without a projection
    return positive, negative + scale * kept + (direction - kept), momentum


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


def _per_image(value: AnyArray, i: Array) -> Array:
    """The values of all images at row i, [B, 1, 1, 1], from [B] or [N, B]."""
    values = jnp.asarray(value, jnp.float32)
    return (values[i] if values.ndim == 2 else values).reshape(-1, 1, 1, 1)


def _projected(
    projection: Projection, x: Array, i: Array, positive: Array, direction: Array
) -> Array:
    """What adaptive projected guidance keeps of the direction; x [B, H, W, C] is scale * latent."""
    axes = tuple(range(1, x.ndim))
    signal, model = jnp.asarray(projection.denoised, jnp.float32)[i]
    limit = jnp.asarray(projection.limit, jnp.float32).reshape(-1, 1, 1, 1)
    size = jnp.abs(model) * jnp.sqrt(jnp.sum(direction**2, axis=axes, keepdims=True))
    direction = direction * jnp.where(size > limit, limit / jnp.where(size == 0, 1, size), 1)
    clean = signal * x + model * positive
    square = jnp.sum(clean**2, axis=axes, keepdims=True)
    share = jnp.sum(direction * clean, axis=axes, keepdims=True) / jnp.where(square == 0, 1, square)
    lost = 1 - jnp.asarray(projection.parallel, jnp.float32).reshape(-1, 1, 1, 1)
    return direction - lost * share * clean


def _contrast(positive: Array, combined: Array) -> Array:
    """Compares the spread of each positive output with the guided one: std ratio, [B, 1, 1, 1]."""
    axes = tuple(range(1, positive.ndim))
    before = jnp.std(positive, axis=axes, keepdims=True)
    after = jnp.std(combined, axis=axes, keepdims=True)
    constant = after == 0  # nothing to rescale, and no 0 / 0 where rescale is off
    return jnp.where(constant, 1.0, before / jnp.where(constant, 1.0, after))
