# SPDX-License-Identifier: MIT
"""Stable Diffusion 1.5, 2.1 and XL: their published shapes with random weights, or a checkpoint."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.stable_diffusion import loading, placement
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.types import Params
from jaxgen.weights import diffusers, ldm_configs
from jaxgen.weights.diffusers import Checkpoint

VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip
OPEN_CLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "projection_dim": 512, "hidden_act": "gelu",
}  # fmt: skip
OPEN_CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
XL_UNET = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
V2_UNET = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
# small enough for tests
TINY = {
    "unet": {
        "sample_size": 8, "block_out_channels": [32, 64], "cross_attention_dim": 32,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 4,
    },
    "vae": {**VAE, "block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    "text_encoder": {
        **CLIP_L, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 100, "eos_token_id": 99,
    },
}  # fmt: skip
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {"sample_size": 64, "cross_attention_dim": 768}, "vae": VAE, "text_encoder": CLIP_L,
    },
    "sd21": {"unet": V2_UNET, "vae": VAE, "text_encoder": OPEN_CLIP_H},
    "sdxl": {
        "unet": XL_UNET, "vae": {**VAE, "sample_size": 1024, **ldm_configs.SCALING["xl"]},
        "text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP_G,
    },
    "tiny": TINY,
}  # fmt: skip
RESOLUTIONS = {"sd15": 512, "sd21": 768, "sdxl": 1024, "tiny": 64}
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


class Model(NamedTuple):
    """Networks, and by component their parameters and the configs that they were built from."""

    name: str
    networks: Networks
    params: dict[str, Params]
    configs: dict[str, dict[str, Any]]


def networks(name: str, dtype: Any) -> Networks:
    """The networks of a published model. Raises ValueError for an unknown name."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; use {', '.join(MODELS)}")
    modules = {}
    for part, config in MODELS[name].items():
        component = diffusers.Component(CLASSES[part], config, {})
        modules[part] = loading.MODULES[part](**diffusers.fields(component), dtype=dtype)
    encoders = {part: modules[part] for part in modules if part.startswith("text_encoder")}
    return Networks(modules["unet"], modules["vae"], encoders)


def random(name: str, dtype: Any) -> Model:
    """A published model with random weights: speed does not depend on their values."""
    model = networks(name, dtype)
    modules = {"unet": model.unet, "vae": model.vae, **model.encoders}
    key = jax.random.key(0, impl="rbg")  # faster than the default for 10^9 numbers
    params = {}
    for i, (part, module) in enumerate(modules.items()):
        shapes = loading.shapes(module)
        params[part] = _random(jax.random.fold_in(key, i), shapes, dtype)
    return Model(name, model, params, MODELS[name])


def stored(name: str, checkpoint: Checkpoint, dtype: Any) -> Model:
    """The model in a checkpoint."""
    model = loading.networks(checkpoint, dtype)
    configs = {part: component.config for part, component in checkpoint.components.items()}
    return Model(name, model, loading.load(checkpoint, model), configs)


def laid_out(model: Model, kernel_layout: str | None) -> Model:
    """The model whose kernels lie in memory as a pipeline's with this `kernel_layout` do."""
    place_of = placement.of_parameters(None, (), kernel_layout)
    if place_of is None:
        return model

    def put(path: Any, leaf: jax.Array) -> jax.Array:
        place = place_of(tuple(part.key for part in path), leaf.shape)
        return leaf if place is None else jax.device_put(leaf, place)

    return model._replace(params=jax.tree.map_with_path(put, model.params))


def num_parameters(params: Params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def _random(key: jax.Array, shapes: Params, dtype: Any) -> Params:
    """Random parameters: normal kernels that keep the variance, scales of 1, biases of 0."""
    paths, structure = jax.tree.flatten_with_path(shapes)
    leaves = []
    for i, (path, leaf) in enumerate(paths):
        match path[-1].key:
            case "scale":
                leaves.append(jnp.asarray(np.ones(leaf.shape, dtype)))
            case "bias":
                leaves.append(jnp.asarray(np.zeros(leaf.shape, dtype)))
            case _:
                leaves.append(_kernel(key, i, leaf.shape, dtype))
    return jax.tree.unflatten(structure, leaves)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _kernel(key: jax.Array, i: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """A normal kernel that keeps the variance; one program for all of a shape."""
    std = 1 / np.sqrt(np.prod(shape[:-1]))
    own = jax.random.fold_in(key, i)
    return jax.random.normal(own, shape, dtype) * jnp.asarray(std, dtype)
