# SPDX-License-Identifier: MIT
"""Builds a checkpoint's networks, and loads their parameters onto the devices."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgen import fields, files
from jaxgen.diffusion import config
from jaxgen.nn import quantized
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.nn.stable_diffusion.autoencoder_tiny import AutoencoderTiny
from jaxgen.nn.stable_diffusion.clip import CLIPTextModel
from jaxgen.nn.stable_diffusion.controlnet import ControlNetModel
from jaxgen.nn.stable_diffusion.unet import UNet2DConditionModel
from jaxgen.nn.stable_diffusion.unet_blocks import UNetEncoder
from jaxgen.stable_diffusion import decoding, placement
from jaxgen.stable_diffusion.networks import ENCODERS, Networks, check_together, check_vocabularies
from jaxgen.types import Array, Params
from jaxgen.weights import diffusers, layout, ldm_kinds
from jaxgen.weights.diffusers import Checkpoint, Component

MOST_ROWS = 100_000  # for vectors of new words
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED_FROM = 2**14  # entries; the first and the last layer of a UNet have fewer

MODULES: Mapping[str, Callable[..., Any]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModel,
}


def module_of(name: str, component: Component) -> Callable[..., Any]:
    """Returns the class of a component; there are two of autoencoders."""
    return AutoencoderTiny if component.class_name == "AutoencoderTiny" else MODULES[name]


def warn_of_scheduler_keys(checkpoint: Checkpoint) -> None:
    """Says in one warning which keys of the scheduler's config no class knows."""
    notes = diffusers.key_notes("scheduler", config.unknown_keys(checkpoint.scheduler))
    if notes:
        warnings.warn(f"{files.printable(checkpoint.name)}: {notes[0]}", stacklevel=3)


def networks(
    checkpoint: Checkpoint, dtype: Any = jnp.float32, controlnets: Sequence[Component] = ()
) -> Networks:
    """Builds the networks of a checkpoint, which compute in `dtype`; no weights are read.

    The autoencoder computes in float32 instead of float16, which XL's overflows.
    """
    modules = {}
    for name, component in checkpoint.components.items():
        own = jnp.float32 if name == "vae" and dtype == jnp.float16 else dtype
        modules[name] = module_of(name, component)(**diffusers.fields(component), dtype=own)
    encoders = {name: modules[name] for name in ENCODERS if name in modules}
    controls = tuple(
        ControlNetModel(**diffusers.fields(component), dtype=dtype) for component in controlnets
    )
    networks = Networks(modules["unet"], modules["vae"], encoders, controls)
    check_together(networks)
    check_vocabularies(networks, checkpoint)
    return networks


def load(
    checkpoint: Checkpoint,
    networks: Networks,
    mesh: Mesh | None = None,
    controlnets: Sequence[Component] = (),
    shapes_of: Callable[[Any], Params] | None = None,
    quantize: str | None = None,
    kernel_layout: str | None = None,
) -> dict[str, Params]:
    """Loads the parameters by component, in the type that each network computes in.

    With a mesh they are copied to all of its devices, or divided over its axis "model".
    shapes_of: what to take instead of `shapes`, which traces each network. quantize: the kind of 8
    bits in which kernels are kept, but the autoencoder's; see `nn.quantized`. kernel_layout: see
    `placement.of_parameters`. Raises ValueError for weights that do not fit the networks, and where
    quantize would change none.
    """
    shapes_of = shapes_of or shapes
    modules: dict[str, Any] = {"unet": networks.unet, "vae": networks.vae, **networks.encoders}
    components = dict(checkpoint.components)
    for k, (module, component) in enumerate(zip(networks.controlnets, controlnets, strict=True)):
        modules[controlnet_name(k)], components[controlnet_name(k)] = module, component
    params = {}
    for name, module in modules.items():
        shardings = placement.of_parameters(mesh, attention_heads(module), kernel_layout)
        convert = None
        if quantize is not None and name != "vae":
            convert = partial(_in_8_bits, name, quantize)
        try:
            shapes_of_leaves, dtype = shapes_of(module), module.dtype
            tensors = _own_tensors(checkpoint.name, name, components[name], shapes_of_leaves)
            params[name] = layout.load(tensors, shapes_of_leaves, dtype, shardings, convert)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if quantize is not None and not _has_scales(params):
        raise ValueError(
            f"quantize is {quantize!r}, but no kernel of this model has the {QUANTIZED_FROM:,} "
            "entries from which on they are kept in 8 bits; leave quantize out"
        )
    return params


def _has_scales(params: dict[str, Params]) -> bool:
    names = (quantized.SCALE, quantized.PRODUCT_SCALE)
    return any(keys[-1].key in names for keys, _ in jax.tree_util.tree_leaves_with_path(params))


def _own_tensors(model: str, part: str, component: Component, leaves: Params) -> Any:
    """The tensors of a network; says in one warning which others lie beside them in its files."""
    tensors, strays = diffusers.without_strays(component.tensors, leaves)
    for note in ldm_kinds.stray_notes(strays):
        warnings.warn(files.printable(f"{model}, {part}: {note}", 2000), stacklevel=4)
    return tensors


def _in_8_bits(
    component: str, kind: str, path: layout.Path, values: np.ndarray
) -> dict[layout.Path, np.ndarray]:
    name = name_of_scale(component, kind, path, values.shape)
    if name is None:
        return {path: values}
    stored, scale = quantized.quantize(values, quantized.stored_kind(kind))
    return {path: stored, (*path[:-1], name): scale}


def name_of_scale(
    component: str, kind: str, path: layout.Path, shape: tuple[int, ...]
) -> str | None:
    """Names the scales of a leaf in 8 bits; None if it is no kernel large enough to gain by them.

    Text encoders run once, not in every step: what they multiply never becomes int8.
    """
    if path[-1] != "kernel" or math.prod(shape) < QUANTIZED_FROM:
        return None
    of_products = kind == quantized.W8A8 and len(shape) == 2 and component not in ENCODERS
    return quantized.PRODUCT_SCALE if of_products else quantized.SCALE


def embedding_rows(networks: Networks, mesh: Mesh | None, count: Any) -> dict[str, Array]:
    """Makes rows for the vectors of new words, by encoder: zeros [count, D] on the devices."""
    count = fields.plain(count)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_ROWS:
        raise ValueError(
            f"embedding_rows is {fields.shown(count)}; it must be a whole number, 0 or more, at "
            f"most {MOST_ROWS}"
        )
    rows = {
        name: np.zeros((count, encoder.hidden_size), np.float32)
        for name, encoder in networks.encoders.items()
    }
    return placement.place_everywhere(mesh, rows)


def previewer(
    component: Component, networks: Networks, dtype: Any = jnp.float32
) -> Callable[[Array], np.ndarray]:
    """Returns a function that decodes estimates with another autoencoder than the pipeline's own.

    component: a tiny one, whose latents are the sampler's. The function takes latents [B, h, w, C]
    and gives pictures, uint8 [B, H, W, 3]; it compiles at its first call.
    """
    module = module_of("vae", component)(**diffusers.fields(component), dtype=dtype)
    own, vae = (module.factor, module.latent_channels), networks.vae
    if own != (vae.factor, vae.latent_channels):
        raise ValueError(
            f"the preview's autoencoder makes latents {own[0]} times smaller with {own[1]} "
            f"channels, and the model's {vae.factor} times with {vae.latent_channels}; take one "
            "that was made for this model"
        )
    params = layout.load(component.tensors, shapes(module), dtype)
    decode = jax.jit(partial(decoding.decode, module))
    return lambda latents: np.asarray(decode(params, latents)[0])


def controlnet_name(k: int) -> str:
    """Names the parameters of ControlNet k."""
    return f"controlnet_{k}"


def check_dtype(dtype: Any) -> Any:
    """Returns the type of arithmetic and parameters; raises ValueError unless it is in DTYPES."""
    try:
        name = None if dtype is None else jnp.dtype(dtype).name  # NumPy takes None for float64
    except Exception:  # NumPy writes the value into its message
        name = None
    if name not in DTYPES:
        raise ValueError(f"dtype is {name or fields.shown(dtype)}; use one of {', '.join(DTYPES)}")
    return jnp.dtype(name)


def check_folder(folder: Any) -> Path | None:
    """Returns the folder of programs; raises ValueError for what is no path."""
    if not isinstance(folder, str | Path | None):
        raise ValueError(f"programs_folder is {fields.shown(folder)}; give a path, or None")
    return None if folder is None else files.expanded(folder)


def shapes(module: Any) -> Params:
    """Returns the shapes of a network's parameters; nothing is computed."""
    if hasattr(module, "dtype"):
        module = module.clone(dtype=jnp.float32)  # parameters are alike in every type
    traced = traced_shapes(module)
    return jax.tree.map(lambda leaf: leaf, traced)  # a tree of the caller's own


@lru_cache(maxsize=64)
def traced_shapes(module: Any) -> Params:
    """Traces a network's `init`: a fifth of a second, however small the network is.

    Its callers share the tree.
    """
    return jax.eval_shape(module.init, jax.random.key(0), *example_inputs(module))["params"]


def example_inputs(module: Any) -> list[Array]:
    """Returns zeros of the smallest shapes that a network takes, for its `init`."""
    match module:
        case UNetEncoder():
            inputs = [
                jnp.zeros((1, 8, 8, module.in_channels)),
                jnp.zeros(1),
                jnp.zeros((1, 1, module.cross_attention_dim)),
            ]
            if isinstance(module, ControlNetModel):
                side = 8 * 2 ** (len(module.conditioning_embedding_out_channels) - 1)
                inputs.append(jnp.zeros((1, side, side, module.conditioning_channels)))
            if module.addition_embed_type == "text_time":
                sizes = 6 * (module.addition_time_embed_dim or 0)
                pooled = (module.projection_class_embeddings_input_dim or 0) - sizes
                if sizes <= 0 or pooled <= 0:
                    raise ValueError(
                        "addition_embed_type 'text_time' needs addition_time_embed_dim and a "
                        "projection_class_embeddings_input_dim of more than 6 times it, not "
                        f"{module.addition_time_embed_dim} and "
                        f"{module.projection_class_embeddings_input_dim}"
                    )
                inputs += [jnp.zeros((1, pooled)), jnp.zeros((1, 6))]
        case AutoencoderKL() | AutoencoderTiny():
            inputs = [jnp.zeros((1, module.factor, module.factor, module.in_channels))]
        case _:
            inputs = [jnp.zeros((1, 1), jnp.int32)]
    return inputs


def attention_heads(module: Any) -> tuple[int, ...]:
    """The numbers of attention heads of a network, of each level or of all layers."""
    heads = getattr(module, "num_attention_heads", None)  # in a UNet it overrides the other
    heads = heads or getattr(module, "attention_head_dim", 1)  # an autoencoder has one
    return (heads,) if isinstance(heads, int) else tuple(heads)
