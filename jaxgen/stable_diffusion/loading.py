# SPDX-License-Identifier: MIT
"""From a checkpoint to networks and their parameters on the devices."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.nn.autoencoder_kl import AutoencoderKL
from jaxgen.nn.clip import CLIPTextModel
from jaxgen.nn.unet import UNet2DConditionModel
from jaxgen.types import Array, Params
from jaxgen.weights import diffusers, layout
from jaxgen.weights.diffusers import Checkpoint

DTYPES = ("float32", "bfloat16", "float16")
DATA, MODEL = "data", "model"  # mesh axes: images, and parts of large parameters
SHARDED_FROM = 2**14  # entries; smaller parameters are kept whole on every device

MODULES: Mapping[str, Callable[..., Any]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModel,
}


class Networks(NamedTuple):
    """The modules of a pipeline."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: dict[str, CLIPTextModel]  # "text_encoder", and in XL "text_encoder_2"


def networks(checkpoint: Checkpoint, dtype: Any = jnp.float32) -> Networks:
    """The networks of a checkpoint, computing in `dtype`; no weights are read.

    The autoencoder stays in float32 where float16 is asked for: XL's overflows it.
    """
    modules = {}
    for name, component in checkpoint.components.items():
        own = jnp.float32 if name == "vae" and dtype == jnp.float16 else dtype
        modules[name] = MODULES[name](**diffusers.fields(component), dtype=own)
    encoders = {name: m for name, m in modules.items() if name.startswith("text_encoder")}
    found = Networks(modules["unet"], modules["vae"], encoders)
    _check_together(found)
    return found


def load(checkpoint: Checkpoint, networks: Networks, mesh: Mesh | None = None) -> dict[str, Params]:
    """The parameters of the networks by component, in the type that each computes in.

    mesh: they are copied to all of its devices, or divided over its axis "model".
    """
    modules = {"unet": networks.unet, "vae": networks.vae, **networks.encoders}
    params = {}
    for name, module in modules.items():
        tensors = checkpoint.components[name].tensors
        try:
            params[name] = layout.load(tensors, shapes(module), module.dtype, sharding(mesh))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return params


def check_dtype(dtype: Any) -> Any:
    """The type of the networks' arithmetic and parameters, else ValueError."""
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        raise ValueError(f"dtype is {name}; use one of {', '.join(DTYPES)}")
    return jnp.dtype(name)


def check_mesh(mesh: Mesh | None) -> Mesh | None:
    """The mesh with automatic axes, which let the compiler divide the work."""
    if mesh is None:
        return None
    unknown = [name for name in mesh.axis_names if name not in (DATA, MODEL)]
    if unknown:
        raise ValueError(
            f"the mesh has axes {', '.join(map(str, mesh.axis_names))}; expected {DATA!r} (images "
            f"are divided over it), {MODEL!r} (parameters are), or both"
        )
    return Mesh(mesh.devices, mesh.axis_names)


def sharding(mesh: Mesh | None) -> Any:
    """Where each parameter goes, as `weights.load` wants it: (path, shape) -> Sharding, or None.

    Large kernels are divided over "model" by their last axis, the features that they compute: each
    device computes its own, and the compiler gathers them where the next layer needs all.
    """
    if mesh is None:
        return None
    parts = mesh.shape.get(MODEL, 1)

    def place(path: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
        large = len(shape) > 1 and np.prod(shape) >= SHARDED_FROM
        if parts == 1 or not large or shape[-1] % parts:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, P(*(None,) * (len(shape) - 1), MODEL))

    return place


def shapes(module: Any) -> Params:
    """The parameter tree as shapes; nothing is computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *example_inputs(module))["params"]


def example_inputs(module: Any) -> list[Array]:
    """Zeros of the smallest shapes that a component takes, for its `init`."""
    match module:
        case UNet2DConditionModel():
            inputs = [
                jnp.zeros((1, 8, 8, module.in_channels)),
                jnp.zeros(1),
                jnp.zeros((1, 1, module.cross_attention_dim)),
            ]
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
        case AutoencoderKL():
            side = 2 ** (len(module.block_out_channels) - 1)
            inputs = [jnp.zeros((1, side, side, module.in_channels))]
        case _:
            inputs = [jnp.zeros((1, 1), jnp.int32)]
    return inputs


def _check_together(networks: Networks) -> None:
    """Each part may be sound and the parts still be of different models."""
    unet, channels = networks.unet, networks.vae.latent_channels
    faults = []
    if unet.in_channels not in (channels, 2 * channels + 1):
        faults.append(
            f"the UNet takes {unet.in_channels} channels; with this autoencoder {channels}, or "
            f"{2 * channels + 1} for inpainting, are expected"
        )
    if unet.out_channels != channels:
        faults.append(f"the UNet returns {unet.out_channels} channels instead of {channels}")
    width = sum(encoder.hidden_size for encoder in networks.encoders.values())
    if width != unet.cross_attention_dim:
        faults.append(
            f"the text encoders give {width} features and the UNet attends to "
            f"{unet.cross_attention_dim}"
        )
    is_xl = unet.addition_embed_type == "text_time"
    if is_xl != (len(networks.encoders) == 2):
        faults.append(
            f"a UNet {'with' if is_xl else 'without'} pooled text and {len(networks.encoders)} "
            "text encoders do not belong together"
        )
    if faults:
        raise ValueError("the parts of the checkpoint do not fit: " + "; ".join(faults))
