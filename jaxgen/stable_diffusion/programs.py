# SPDX-License-Identifier: MIT
"""Lists the programs of a pipeline that are compiled."""

import contextlib
import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import Mesh

from jaxgen.adapters.beside import Beside
from jaxgen.nn.attention import for_inference
from jaxgen.nn.stable_diffusion.autoencoder_tiny import Autoencoder
from jaxgen.nn.stable_diffusion.transformer import BlockContext
from jaxgen.nn.stable_diffusion.unet import Deep
from jaxgen.stable_diffusion import control, decoding, generate, loading, placement, text_encoding
from jaxgen.stable_diffusion.inputs import Inputs
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.request import BatchRequest
from jaxgen.types import Array, Params
from jaxgen.warm import stored_programs
from jaxgen.warm.stored_programs import Store

# what stored programs return, by names of their own
KINDS = (text_encoding.Text, generate.Prepared, generate.State, control.Ready, Deep, BlockContext)
for kind in KINDS:
    export.register_namedtuple_serialization(kind, serialized_name=f"jaxgen.{kind.__name__}")

# on_step(done, total, latents, estimate): rows done and to do, the latents [B, h, w, C] after this
# row, and the model's present estimate of the final ones
OnStep = Callable[[int, int, Array, Array], None]


class Programs(NamedTuple):
    """These functions are jitted: each is compiled once for every batch size and image size."""

    embed: Callable[..., Any]  # (params, chunks, new words, clip_skip) -> Text
    stack: Callable[..., Any]  # (texts, which are blank) -> Text with all of them
    noise: Callable[..., Any]  # (seeds, shape) -> unit noise
    begin: Callable[..., Any]  # (params, inputs) -> prepared, state
    step: Callable[..., Any]  # (params, inputs, prepared, i, state) -> state, estimate
    latents: Callable[..., Any]  # (params, inputs, noise) -> latents: all steps in one dispatch
    encode_chunk: Callable[..., Any]  # (params, pictures, cut, index) -> posterior of one chunk
    draw: Callable[..., Any]  # (moments, seeds, shape, purpose, cut) -> latents
    decode_piece: Callable[..., Any]  # (params, latents, cut, origin) -> one piece of the pictures
    assemble: Callable[..., Any]  # (pieces, cut) -> pictures uint8, which are finite
    decode: Any  # (params, latents, cut) -> the same: all pieces in one dispatch


def build(networks: Networks, mesh: Mesh | None = None, store: Store | None = None) -> Programs:
    """Builds the programs of these networks; each is compiled at its first call.

    store: where they are kept, traced, for the next start.
    """

    def jit(name: str, function: Callable[..., Any], **options: Any) -> Any:
        function = for_inference(function, mesh)
        function.__name__ = name  # which profiles show
        if store is None or not _can_be_kept(mesh):
            return jax.jit(function, **options)
        return store.jit(name, function, **options)

    unet, vae, nets = networks.unet, networks.vae, networks.controlnets
    batch = None if mesh is None else placement.rows(mesh)
    state: Any = None
    if mesh is not None:
        shardings: Any = [placement.rows(mesh, axis=axis) for axis in (1, 0, 0)]
        state = generate.State(*shardings)

    def whole_run(params: Params, inputs: Inputs, noise: Array) -> Array:
        return generate.latents(unet, params, inputs._replace(noise=noise), nets)

    def draw(moments: list[Array], seeds: Array, shape: Any, purpose: str, cut: decoding.Cut):
        noise = generate.posterior_noise(seeds, shape, purpose)
        return decoding.draw(vae, moments, noise, cut)

    def assemble(pieces: list[Array], cut: decoding.Cut):
        return decoding.assemble(jnp.stack(pieces), cut)

    static = {"static_argnames": "cut"}
    return Programs(
        embed=jit("embed", partial(text_encoding.encode, networks), static_argnames="clip_skip"),
        stack=jit("stack", text_encoding.stack),
        noise=jit("noise", generate.initial_noise, static_argnames="shape", out_shardings=batch),
        begin=jit("begin", partial(generate.begin, unet, nets=nets), out_shardings=(None, state)),
        step=jit(
            "step",
            partial(generate.step, unet, nets=nets),
            donate_argnames="state",
            out_shardings=(state, batch),
        ),
        latents=jit("latents", whole_run, donate_argnames="noise", out_shardings=batch),
        encode_chunk=jit("encode_chunk", partial(decoding.encode_chunk, vae), **static),
        draw=jit("draw", draw, static_argnames=("shape", "purpose", "cut"), out_shardings=batch),
        decode_piece=jit("decode_piece", partial(decoding.decode_piece, vae), **static),
        assemble=jit("assemble", assemble, **static),
        decode=jit("decode", partial(decoding.decode, vae), **static),
    )


def of_networks(
    networks: Networks, mesh: Mesh | None = None, folder: Path | None = None
) -> tuple[Programs, Store]:
    """Returns the programs of these networks, and the store that keeps them in a folder.

    Without a folder, equal networks have the same: their second pipeline compiles nothing anew.
    """
    if folder is None:
        return _shared(networks, mesh, stored_programs.environment())
    store = Store(folder, repr(networks))
    return build(networks, mesh, store), store


@functools.lru_cache(maxsize=8)
def _shared(networks: Networks, mesh: Mesh | None, environment: str) -> tuple[Programs, Store]:
    """Builds what `of_networks` shares, once for each state of what a store depends on."""
    store = Store(None, repr(networks))
    return build(networks, mesh, store), store


def _can_be_kept(mesh: Mesh | None) -> bool:
    """Says whether files can hold the programs of a mesh: of several GPUs or TPUs they cannot.

    JAX divides cuDNN's attention by a function of Python, and the TPU's kernel over one mesh.
    """
    return mesh is None or jax.default_backend() not in ("gpu", "tpu")


def latent_shape(vae: Autoencoder, batch: BatchRequest) -> tuple[int, int, int, int]:
    """The shape [B, h, w, C] of the latents of a batch."""
    height, width = batch.size
    return len(batch.seeds), height // vae.factor, width // vae.factor, vae.latent_channels


def inputs(
    programs: Programs,
    networks: Networks,
    params: dict[str, Params],
    mesh: Mesh | None,
    batch: BatchRequest,
    text: text_encoding.Text,
    adapters: Beside | None = None,
) -> Inputs:
    """Brings a batch and its encoded texts to the devices, with noise and latents of images.

    adapters: those of each image, as `Inputs` has them.
    """
    shape = latent_shape(networks.vae, batch)
    noise = batch.latents
    if noise is None:
        noise = programs.noise(placement.place(mesh, batch.seeds), shape=shape[1:])
    result = Inputs(
        table=jax.tree.map(placement.as_float32, batch.table),
        noise=noise,
        clean=np.zeros(shape, np.float32),
        from_image=np.asarray(batch.from_image),
        seeds=batch.seeds,
        context=text.context,
        guidance_scale=batch.guidance_scale,
        guidance_rescale=batch.guidance_rescale,
        text_index=batch.phases.index,
        text_weights=batch.phases.weights,
        guidance_parallel=batch.guidance_parallel,
        guidance_limit=batch.guidance_limit,
        guidance_momentum=batch.guidance_momentum,
        pag_scale=batch.pag_scale,
        pag_layers=batch.pag_layers,
        pooled=text.pooled,
        time_ids=batch.time_ids,
        controls=tuple(
            control.Control(params[loading.controlnet_name(k)], *own)
            for k, own in enumerate(batch.controls)
        ),
        adapters=adapters,
        full=batch.full,
    )
    fields = from_image(programs, networks, params["vae"], mesh, batch)
    return placement.place_inputs(mesh, result._replace(**fields))


def step_by_step(
    programs: Programs, params: Params, inputs: Inputs, on_step: OnStep | None
) -> Array:
    """Runs all steps, each in a dispatch of its own: the final latents, float32 [B, h, w, C]."""
    prepared, state = programs.begin(params, inputs)
    start, end = int(inputs.table.start_row), int(inputs.table.num_rows)
    for i in range(start, end):
        state, estimate = programs.step(params, inputs, prepared, np.int32(i), state)
        if on_step is not None:
            on_step(i - start + 1, end - start, state.latents[0], estimate)
        # on CPU, many programs in flight only compete for its cores
        jax.block_until_ready(estimate)
    return state.latents[0]


def decode(
    programs: Programs, params: Params, latents: Array, cut: decoding.Cut, at_once: bool
) -> tuple[Array, Array]:
    """Decodes latents in one dispatch or piece by piece: pictures uint8, and which are finite."""
    if at_once:
        return programs.decode(params, latents, cut=cut)
    pieces = [
        programs.decode_piece(params, latents, cut=cut, origin=origin) for origin in cut.origins
    ]
    return programs.assemble(pieces, cut=cut)


def from_image(
    programs: Programs, networks: Networks, params: Params, mesh: Mesh | None, batch: BatchRequest
) -> dict[str, Any]:
    """Returns the fields of `Inputs` that come from an image and its mask."""
    draw = partial(encode, programs, networks.vae, params, mesh)
    fields: dict[str, Any] = {} if batch.clean is None else {"clean": batch.clean}
    if batch.image is not None:
        fields = {"clean": draw(batch.image, batch.seeds, "image")}
    if batch.mask is None:
        return fields
    f = networks.vae.factor
    # the nearest pixel, and no average: inpainting models were trained on such masks
    fields["mask"] = batch.mask[:, ::f, ::f]
    if networks.inpaints and batch.image is not None:
        hidden = batch.image * (1 - batch.mask)  # 0 is grey
        known = np.asarray(draw(hidden, batch.seeds, "masked_image"))
        fields["extra"] = np.concatenate([fields.pop("mask"), known], axis=-1)
    return fields


def compile_decoder(
    programs: Programs, params: Params, shape: tuple[int, ...], cut: decoding.Cut
) -> None:
    """Compiles `decode` for latents of a shape: its call finds that, or raises what failed."""
    latents = jax.ShapeDtypeStruct(shape, jnp.float32)
    with contextlib.suppress(Exception):
        programs.decode.lower(params, latents, cut=cut).compile()


def encode(
    programs: Programs,
    vae: Autoencoder,
    params: Params,
    mesh: Mesh | None,
    picture: np.ndarray,
    seeds: np.ndarray,
    purpose: str,
) -> Array:
    """Draws latents [B, h, w, C] from the posterior of pictures [B, H, W, 3], piece by piece."""
    b, groups = len(picture), placement.num_groups(mesh)
    h, w = picture.shape[1] // vae.factor, picture.shape[2] // vae.factor
    cut = decoding.cut_of((b, h, w), vae.factor, groups, tile=max(h, w))
    placed = placement.place(mesh, np.asarray(picture, np.float32))
    moments = [
        programs.encode_chunk(params, placed, cut=cut, index=np.int32(i)) for i in range(cut.chunks)
    ]
    shape = (h, w, vae.latent_channels)
    return programs.draw(moments, placement.place(mesh, seeds), shape, purpose, cut)
