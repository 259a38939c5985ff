# SPDX-License-Identifier: MIT
"""Guidance: how a model's outputs for an image's texts become one, and scales row by row, as data.

`guide` wraps a model for `sample.sample`; `combine` is what it does to the outputs. `interval`,
`ramp` and `cfg_plus_plus` return functions of a sampler's table, which give [R, 1] for the R rows
that are run: what `guidance_scale` of a pipeline takes beside numbers. A scale of 1 is no guidance,
0 follows the negative text alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.diffusion.sample import Denoise
from jaxgen.diffusion.table import NUM_MEMORIES, Table
from jaxgen.types import AnyArray, Array

Scales = Callable[[Table], np.ndarray]  # table -> [R, 1]


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


def interval(scale: float, start: float, end: float) -> Scales:
    """Guides between two shares of the run only, from 0 (its begin) to 1.

    Kynkaanniemi et al. 2024 (arXiv:2404.07724): guidance harms at high noise levels and is of no
    use at low ones.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"guidance from {start} to {end} of a run; give two shares of it from 0 to 1, the "
            "smaller one first"
        )

    def scales(table: Table) -> np.ndarray:
        count = num_rows(table)
        k = np.arange(count)
        inside = (k / count >= start) & ((k + 1) / count <= end)
        return np.where(inside, scale, 1.0)[:, None]

    return scales


def ramp(first: float, last: float) -> Scales:
    """Changes the scale evenly from the first row to the last."""
    return lambda table: np.linspace(first, last, num_rows(table))[:, None]


def cfg_plus_plus(strength: float) -> Scales:
    """CFG++, Chung et al. 2024 (arXiv:2406.08070) algorithm 2, strength from 0 to 1.

    Its step keeps the noise of the negative text, a' x_0(guided) + s' eps(negative). In a step of
    one evaluation the guidance's share of the next latent is then strength a' dx_0/d_output,
    instead of scale dlatent/d_output: it is guidance with a scale of its own at every row. Raises
    ValueError for samplers with a history.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"the strength of CFG++ is {strength}; it must lie between 0 and 1")

    def scales(table: Table) -> np.ndarray:
        rows = slice(int(table.start_row), int(table.num_rows))
        update, memory = table.update[rows, 0], slice(1, 1 + NUM_MEMORIES)
        if update[:, memory].any():
            raise ValueError(
                "CFG++ is made for samplers that step from one model output alone, and this one "
                "has a history; use ddim, euler, euler_ancestral, lcm or tcd"
            )
        signal = table.noising[1:, 0][rows]  # of the next latent
        return (strength * signal * table.denoised[rows, 1] / update[:, -2])[:, None]

    return scales


def num_rows(table: Table) -> int:
    """Counts the rows that a table runs: evaluations of the model."""
    return int(table.num_rows) - int(table.start_row)


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
