# SPDX-License-Identifier: MIT
"""The functional core: `generate(params, inputs) -> images`, pure, to be jitted, mapped, exported.

Everything that distinguishes one picture from another is an array in `Inputs`: text, seeds,
guidance, the sampler with its number of steps, strength. So one compilation serves them all.
What does not depend on the step (embedded times and sizes, keys and values of the text) is
computed once, by `begin`; `step` is one evaluation of the UNet, and `latents` all of them in one
loop.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.adapters import low_rank
from jaxgen.diffusion import guidance, sample
from jaxgen.nn.embeddings import sinusoid
from jaxgen.nn.stable_diffusion import perturbed
from jaxgen.nn.stable_diffusion.autoencoder_tiny import Autoencoder
from jaxgen.nn.stable_diffusion.controlnet import ControlNetModel
from jaxgen.nn.stable_diffusion.unet import Deep, UNet2DConditionModel
from jaxgen.stable_diffusion import control, decoding
from jaxgen.stable_diffusion.inputs import Inputs
from jaxgen.types import AnyArray, Array, Key, Params

Nets = tuple[ControlNetModel, ...]


class Prepared(NamedTuple):
    """Holds what a run computes once, before its first step."""

    times: Array  # [N, D] embedded times of all rows of the table; [N, B, D] in distilled UNets
    added: Array | None  # [B * S, D] embedded sizes and pooled text of XL
    text: Any  # keys and values of all texts for every cross-attention
    controls: tuple[control.Ready, ...] = ()  # the same of every ControlNet


class State(NamedTuple):
    """Holds what a row hands to the next."""

    latents: Array  # [1 + NUM_MEMORIES, B, h, w, C]: [0] is the latent, the rest the sampler's
    deep: Deep | None = None  # of the last full row
    momentum: Array | None = None  # [B, h, w, C], see `guidance.combine`


def streams(seeds: AnyArray) -> sample.NoiseKeys:
    """Makes the independent keys of every image from seeds uint32 [B]."""
    return sample.noise_keys(jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)))


def initial_noise(seeds: AnyArray, shape: tuple[int, int, int]) -> Array:
    """Draws the unit noise that each image begins with, [B, h, w, C], from its own seed alone."""
    return sample.initial_noise(streams(seeds).initial, shape)


def posterior_noise(seeds: AnyArray, shape: tuple[int, int, int], purpose: str) -> Array:
    """Draws unit noise [B, h, w, C] for the posterior of the "image" or of the "masked_image".

    Never the noise that the run begins with: that would be correlated with the latent.
    """
    pairs = jax.vmap(jax.random.split)(streams(seeds).posterior)
    keys = {"image": pairs[:, 0], "masked_image": pairs[:, 1]}
    return sample.initial_noise(keys[purpose], shape)


def begin(
    unet: UNet2DConditionModel, params: Params, inputs: Inputs, nets: Nets = ()
) -> tuple[Prepared, State]:
    """Computes what does not depend on the step, and the state that the first row receives."""
    b, size, t, e = inputs.context.shape
    variables = {"params": params}
    times: Any = unet.apply(variables, *_times(unet, inputs), method="embed_time")
    added: Any = None
    conditions = None
    if unet.addition_embed_type == "text_time":
        if inputs.pooled is None or inputs.time_ids is None:
            raise ValueError("this UNet takes pooled text and sizes; give pooled and time_ids")
        pooled = inputs.pooled.reshape(b * size, -1)
        sizes = jnp.asarray(inputs.time_ids)
        sizes = sizes[:, None] if sizes.ndim == 2 else sizes
        sizes = jnp.broadcast_to(sizes, (b, size, sizes.shape[-1])).reshape(b * size, -1)
        conditions = (pooled, sizes)
        added = unet.apply(variables, *conditions, method="embed_added")
    context = inputs.context.reshape(b * size, t, e)
    text = _apply(unet, params, inputs, context, method="text_context")
    row_times = jnp.asarray(inputs.table.t, jnp.float32)
    controls = tuple(
        control.begin(net, own, row_times, context, conditions, groups_of(inputs))
        for net, own in zip(nets, inputs.controls, strict=True)
    )
    return Prepared(times, added, text, controls), _first_state(unet, inputs, nets)


def step(
    unet: UNet2DConditionModel,
    params: Params,
    inputs: Inputs,
    prepared: Prepared,
    i: Array,
    state: State,
    nets: Nets = (),
) -> tuple[State, Array]:
    """Runs row i: the next state, and the estimate of the final latent."""
    x = sample.seen(inputs.table, i, state.latents)
    out, deep = _outputs(unet, params, inputs, prepared, nets, i, x, state.deep)
    momentum = state.momentum
    if groups_of(inputs) > 1:
        out, momentum = guidance.combine(_guidance(inputs), x, i, out, momentum)
    latents, estimate = sample.advance(
        inputs.table, i, state.latents, out, _keys(inputs),
        noise=inputs.step_noise, inpainting=_inpainting(inputs),
    )  # fmt: skip
    return State(latents, deep, momentum), estimate


def latents(unet: UNet2DConditionModel, params: Params, inputs: Inputs, nets: Nets = ()) -> Array:
    """Runs all rows in one loop on the device: the final latents, float32 [B, h, w, C]."""
    prepared, first = begin(unet, params, inputs, nets)

    def body(i: Array, state: State) -> State:
        return step(unet, params, inputs, prepared, i, state, nets)[0]

    start, end = jnp.asarray(inputs.table.start_row), jnp.asarray(inputs.table.num_rows)
    return jax.lax.fori_loop(start, end, body, first).latents[0]


def generate(
    unet: UNet2DConditionModel,
    vae: Autoencoder,
    params: Params,
    inputs: Inputs,
    cut: decoding.Cut | None = None,
) -> Array:
    """Makes images, uint8 [B, H, W, 3], from params {"unet": ..., "vae": ...} and inputs.

    With the modules bound (`functools.partial(generate, unet, vae)`) it is the pure function of
    params and inputs that jit, vmap, shardings and export take.
    """
    final = latents(unet, params["unet"], inputs)
    return decoding.decode(vae, params["vae"], final, cut)[0]


def groups_of(inputs: Inputs) -> int:
    """Counts the texts that guide an image at a time."""
    index = inputs.text_index
    return inputs.context.shape[1] if index is None else jnp.shape(index)[-1]


def _times(unet: UNet2DConditionModel, inputs: Inputs) -> tuple[Array, Array | None]:
    """Returns the model's times [N] and None; for UNets that take their guidance scale as an input,
    times [N, B] and the embedded scales [N, B, E].

    Such UNets are distilled, Luo et al. 2023 (arXiv:2310.04378) section 4.1; they take the sinusoid
    of 1000 (scale - 1) as diffusers writes it.
    """
    times = jnp.asarray(inputs.table.t, jnp.float32)
    if unet.time_cond_proj_dim is None:
        return times, None
    scales = 1000 * (jnp.asarray(inputs.guidance_scale, jnp.float32) - 1)  # [B] or [N, B]
    shape = (*times.shape, scales.shape[-1])
    embedded = sinusoid(
        jnp.broadcast_to(scales, shape), unet.time_cond_proj_dim, flip_sin_to_cos=False,
        freq_shift=1,
    )  # fmt: skip
    return jnp.broadcast_to(times[:, None], shape), embedded


def _first_latent(inputs: Inputs) -> Array:
    from_noise = sample.scaled_noise(inputs.table, inputs.noise)
    from_image = sample.noised(inputs.table, inputs.clean, inputs.noise)
    return jnp.where(inputs.from_image, from_image, from_noise)


def _first_state(unet: UNet2DConditionModel, inputs: Inputs, nets: Nets) -> State:
    latents, deep = sample.first_state(_first_latent(inputs)), None
    if inputs.full is not None:
        b, h, w, _ = latents.shape[1:]
        deep = unet.no_deep((b * groups_of(inputs), h, w), bool(nets))
    momentum = None if inputs.guidance_momentum is None else jnp.zeros_like(latents[0])
    return State(latents, deep, momentum)


def _outputs(
    unet: UNet2DConditionModel,
    params: Params,
    inputs: Inputs,
    prepared: Prepared,
    nets: Nets,
    i: Array,
    x: Array,
    deep: Deep | None,
) -> tuple[Array, Deep | None]:
    """Evaluates the UNet at row i for latents x [B, h, w, C]: its outputs [B * G, h, w, C], and the
    deep features that rows which are not full take again."""
    x, own = guidance.repeated(x, groups_of(inputs)), _at_row(inputs, prepared, i)
    emb = prepared.times[i]
    emb = jnp.broadcast_to(emb, (len(x), emb.shape[-1]))
    if own.added is not None:
        emb = emb + own.added
    rows, text = x, own.text
    if inputs.pag_scale is not None:  # the last row of each image
        last = jnp.arange(len(x)) % groups_of(inputs) == groups_of(inputs) - 1
        text = perturbed.with_perturbed(text, inputs.pag_layers, last)
    if inputs.extra is not None:
        extra = jnp.repeat(inputs.extra, groups_of(inputs), axis=0)
        rows = jnp.concatenate([x, extra], axis=-1)

    def with_controls(method: str) -> Any:
        # ControlNets see the latent alone, also beside inpainting UNets
        added = control.residuals(nets, inputs.controls, own.controls, x, i)
        return _apply(unet, params, inputs, rows, emb, text, added, method=method)

    if inputs.full is None:
        return with_controls("denoise"), None
    full = jnp.asarray(inputs.full)[i]
    deep = jax.lax.cond(full, lambda: with_controls("deep"), lambda: deep)
    return _apply(unet, params, inputs, rows, emb, text, deep, method="shallow"), deep


def _guidance(inputs: Inputs) -> guidance.Guidance:
    """Says how the outputs for an image's texts become one."""
    projection = None
    if inputs.guidance_parallel is not None and inputs.guidance_limit is not None:
        parts = (inputs.guidance_parallel, inputs.guidance_limit, inputs.guidance_momentum)
        projection = guidance.projection(inputs.table, *parts)
    return guidance.Guidance(
        inputs.guidance_scale, inputs.guidance_rescale, projection, inputs.text_weights,
        inputs.pag_scale,
    )  # fmt: skip


def _at_row(inputs: Inputs, prepared: Prepared, i: Array) -> Prepared:
    """Picks the texts that hold at row i: of B * S rows, B * G."""
    if inputs.text_index is None:
        return prepared
    b, size = inputs.context.shape[:2]
    places = jnp.asarray(inputs.text_index)[i]  # [B, G]

    def pick(x: Array) -> Array:
        sets = x.reshape(b, size, *x.shape[1:])
        index = places.reshape(*places.shape, *(1,) * (x.ndim - 1))
        return jnp.take_along_axis(sets, index, axis=1).reshape(-1, *x.shape[1:])

    return prepared._replace(
        added=jax.tree.map(pick, prepared.added),
        text=jax.tree.map(pick, prepared.text),
        controls=tuple(
            own._replace(added=jax.tree.map(pick, own.added), text=jax.tree.map(pick, own.text))
            for own in prepared.controls
        ),
    )


def _apply(
    unet: UNet2DConditionModel,
    params: Params,
    inputs: Inputs,
    rows: AnyArray,
    *args: Any,
    method: str,
) -> Any:
    """Calls a method of the UNet on rows [B * G, ...], with the adapters of each image."""
    if inputs.adapters is None:
        return unet.apply({"params": params}, rows, *args, method=method)
    factors, scale = inputs.adapters
    variables = {"params": params, low_rank.COLLECTION: factors}
    with low_rank.added(jnp.repeat(scale, len(rows) // len(scale), axis=0)):
        return unet.apply(variables, rows, *args, method=method)


def _keys(inputs: Inputs) -> Key | None:
    """Returns the keys of the samplers' own noise, [B]; None where that noise is an input."""
    return streams(inputs.seeds).steps if inputs.step_noise is None else None


def _inpainting(inputs: Inputs) -> sample.Inpainting | None:
    if inputs.mask is None:
        return None
    return sample.Inpainting(inputs.mask, inputs.clean, inputs.noise)
