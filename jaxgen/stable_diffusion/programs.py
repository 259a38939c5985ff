# SPDX-License-Identifier: MIT
"""The compiled programs of a pipeline, and how its arrays lie on a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.stable_diffusion import decoding, generate, text_encoding
from jaxgen.stable_diffusion.generate import Inputs
from jaxgen.stable_diffusion.loading import DATA, Networks
from jaxgen.types import Array, Params


class Programs(NamedTuple):
    """Jitted functions, each compiled once for every batch size and size of image."""

    embed: Callable[..., Any]  # (params, chunks, clip_skip) -> Text
    pair: Callable[..., Any]  # (negative, positive, blank rows) -> Text with both
    noise: Callable[..., Any]  # (seeds, shape) -> unit noise
    begin: Callable[..., Any]  # (params, inputs) -> conditions, state
    step: Callable[..., Any]  # (params, inputs, conditions, i, state) -> state, estimate
    latents: Callable[..., Any]  # (params, inputs, noise) -> latents: all steps in one dispatch
    encode_piece: Callable[..., Any]  # (params, pictures, plan, index) -> posterior of one chunk
    draw: Callable[..., Any]  # (moments, seeds, shape, purpose, plan) -> latents
    decode_piece: Callable[..., Any]  # (params, latents, plan, cut) -> one piece of the pictures
    assemble: Callable[..., Any]  # (pieces, plan) -> pictures uint8, which are finite
    decode: Callable[..., Any]  # all pieces in one dispatch


def programs(networks: Networks, mesh: Mesh | None = None) -> Programs:
    """The programs of these networks; nothing is compiled before its first call."""
    unet, vae = networks.unet, networks.vae
    batch, state = (None, None) if mesh is None else (rows(mesh), rows(mesh, axis=1))

    def whole_run(params: Params, inputs: Inputs, noise: Array) -> Array:
        return generate.latents(unet, params, inputs._replace(noise=noise))

    def pair(negative: text_encoding.Text, positive: text_encoding.Text, empty: Array):
        return text_encoding.pairs(text_encoding.blank(negative, empty), positive)

    def draw(moments: list[Array], seeds: Array, shape: Any, purpose: str, plan: decoding.Plan):
        noise = generate.posterior_noise(seeds, shape, purpose)
        return decoding.draw(vae, moments, noise, plan)

    def assemble(pieces: list[Array], plan: decoding.Plan):
        return decoding.assemble(jnp.stack(pieces), plan)

    static = {"static_argnames": "plan"}
    return Programs(
        embed=jax.jit(
            partial(text_encoding.encode, networks.encoders), static_argnames="clip_skip"
        ),
        pair=jax.jit(pair),
        noise=jax.jit(generate.initial_noise, static_argnames="shape", out_shardings=batch),
        begin=jax.jit(partial(generate.begin, unet), out_shardings=(None, state)),
        step=jax.jit(
            partial(generate.step, unet), donate_argnames="state", out_shardings=(state, batch)
        ),
        latents=jax.jit(whole_run, donate_argnames="noise", out_shardings=batch),
        encode_piece=jax.jit(partial(decoding.encode_piece, vae), **static),
        draw=jax.jit(draw, static_argnames=("shape", "purpose", "plan"), out_shardings=batch),
        decode_piece=jax.jit(partial(decoding.decode_piece, vae), **static),
        assemble=jax.jit(assemble, **static),
        decode=jax.jit(partial(decoding.decode, vae), **static),
    )


def rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Arrays whose given axis is the batch, divided over "data" if the mesh has it."""
    return NamedSharding(mesh, P(*(None,) * axis, DATA) if DATA in mesh.shape else P())


def place(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays with a leading batch axis on the devices; scalars and tables on all of them."""
    if mesh is None:
        return jax.device_put(tree)
    return jax.device_put(tree, rows(mesh))


def place_inputs(mesh: Mesh | None, inputs: Inputs) -> Inputs:
    """All arrays of `Inputs` where they belong, so that no step moves them again."""
    if mesh is None:
        return jax.device_put(inputs)
    everywhere = NamedSharding(mesh, P())
    wholes = {
        name: jax.device_put(getattr(inputs, name), everywhere) for name in ("table", "from_image")
    }
    divided = {
        name: jax.device_put(value, rows(mesh, axis=name == "step_noise"))
        for name, value in inputs._asdict().items()
        if name not in wholes and value is not None
    }
    return inputs._replace(**wholes, **divided)
