# SPDX-License-Identifier: MIT
"""A small Stable Diffusion to train: its three networks as configurations in diffusers' layout.

Training builds its networks from the same config.json files that are exported, so the networks of
training and of inference cannot differ.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.diffusion import schedule
from jaxgen.nn import linear
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.stable_diffusion import loading
from jaxgen.types import Array, Key, Params
from jaxgen.weights import diffusers
from jaxgen.weights.diffusers import Checkpoint, Component
from jaxgen.weights.tokenizer import Tokenizer

LATENT_CHANNELS = 4
TRAIN_STEPS = 1000
# its pictures are drawn with these, and its accuracy is measured with them
NUM_STEPS, GUIDANCE_SCALE = 20, 3.0


class Sizes(NamedTuple):
    """The sizes of the networks; the rest is as in Stable Diffusion 1."""

    image_size: int  # pixels
    vae_channels: tuple[int, ...]  # of each level; every further one halves height and width
    unet_channels: tuple[int, ...]
    unet_heads: int
    text_width: int
    text_layers: int
    norm_groups: int
    prediction_type: str  # "epsilon" or "v_prediction"

    @property
    def factor(self) -> int:
        """How many pixels of the picture one of the latent stands for; see `AutoencoderKL`."""
        return autoencoder(self.image_size, self.vae_channels, self.norm_groups).factor


def checkpoint(sizes: Sizes, tokenizer: Tokenizer, scaling_factor: float = 1.0) -> Checkpoint:
    """Builds the pipeline as diffusers stores it, without weights."""
    classes = {
        "unet": ("UNet2DConditionModel", _unet(sizes)),
        "vae": (
            "AutoencoderKL",
            _vae(sizes.image_size, sizes.vae_channels, sizes.norm_groups, scaling_factor),
        ),
        "text_encoder": ("CLIPTextModel", _text_encoder(sizes, tokenizer)),
    }
    components = {name: Component(kind, config, {}) for name, (kind, config) in classes.items()}
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    return Checkpoint(index, components, {"tokenizer": tokenizer}, scheduler(sizes))


def autoencoder(
    image_size: int, channels: tuple[int, ...], norm_groups: int, dtype: Any = jnp.float32
) -> AutoencoderKL:
    """The autoencoder by itself, for the first stage; arguments as in `Sizes`."""
    component = Component("AutoencoderKL", _vae(image_size, channels, norm_groups, 1.0), {})
    return AutoencoderKL(**diffusers.fields(component), dtype=dtype)


def with_params(checkpoint: Checkpoint, params: dict[str, Params]) -> Checkpoint:
    """Puts parameters by component ("unet", "vae", "text_encoder") into the checkpoint."""
    components = {
        name: diffusers.with_params(component, jax.device_get(params[name]))
        for name, component in checkpoint.components.items()
    }
    return checkpoint._replace(components=components)


def init(key: Key, module: Any) -> Params:
    """Draws fresh parameters of a component, distributed as `module.init` draws them.

    All kernels are parts of one draw, which XLA compiles in 4 seconds: a hundred draws, one a
    kernel of a small UNet, take it 17. Raises KeyError for a parameter that is neither a kernel,
    a bias, a scale nor an embedding.
    """
    kernel_key, table_key = jax.random.split(key)
    shapes: dict = traverse_util.flatten_dict(loading.shapes(module))
    ends = np.cumsum([math.prod(leaf.shape) for name, leaf in shapes.items() if _is_kernel(name)])
    draws = linear.LECUN(kernel_key, (1, int(ends[-1])))[0]  # of variance 1: their fan-in is 1
    draws = jax.lax.optimization_barrier(draws)  # or XLA repeats the draw for every kernel
    parts = iter(jnp.split(draws, ends[:-1]))

    def start(i: int, name: tuple[str, ...], shape: tuple[int, ...]) -> Array:
        if _is_kernel(name):
            return next(parts).reshape(shape) / math.sqrt(math.prod(shape[:-1]))
        if name[-1] == "embedding":
            return linear.EMBEDDING(jax.random.fold_in(table_key, i), shape)
        return {"bias": jnp.zeros, "scale": jnp.ones}[name[-1]](shape)

    return traverse_util.unflatten_dict(
        {name: start(i, name, leaf.shape) for i, (name, leaf) in enumerate(shapes.items())}
    )


def _is_kernel(name: tuple[str, ...]) -> bool:
    return name[-1] == "kernel"


def with_vocabulary(params: Params, old: Tokenizer, new: Tokenizer) -> Params:
    """Adapts a text encoder to another vocabulary; tokens of both keep their embedding.

    The other tokens begin at random, with the mean and the spread of the old embedding.
    """
    embedding = ("token_embedding", "embedding")
    flat = traverse_util.flatten_dict(params)
    (name,) = (name for name in flat if name[-2:] == embedding)
    table = np.asarray(flat[name])
    embeddings = np.random.default_rng(0).normal(
        table.mean(0), table.std(0), (len(new.vocab), table.shape[1])
    )
    for token, row in new.vocab.items():
        if token in old.vocab:
            embeddings[row] = table[old.vocab[token]]
    return traverse_util.unflatten_dict({**flat, name: jnp.asarray(embeddings, table.dtype)})


def alphas_cumprod() -> np.ndarray:
    """Returns the noise levels that `scheduler` describes, for training: float64 [1000]."""
    return schedule.noise_schedule(TRAIN_STEPS, **schedule.STABLE_DIFFUSION_BETAS).alphas_cumprod


def scheduler(sizes: Sizes) -> dict[str, Any]:
    """Returns the scheduler's config: Stable Diffusion's noise levels, a sampler of few steps."""
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        **schedule.STABLE_DIFFUSION_BETAS,
        "num_train_timesteps": TRAIN_STEPS,
        "prediction_type": sizes.prediction_type,
        "solver_order": 2,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def check_fits(params: Params, module: Any, where: str) -> None:
    """Raises ValueError unless these are parameters of this module; `where` says whose they are."""
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, loading.shapes(module)):
        raise ValueError(
            f"{where} has a {type(module).__name__} of other sizes; give the sizes of that run"
        )


def _vae(
    image_size: int, channels: tuple[int, ...], norm_groups: int, scaling_factor: float
) -> dict[str, Any]:
    levels = len(channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": norm_groups,
        "out_channels": 3,
        "sample_size": image_size,
        "scaling_factor": scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _unet(sizes: Sizes) -> dict[str, Any]:
    levels = len(sizes.unet_channels)
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": sizes.unet_heads,  # the number of heads, by its historic name
        "block_out_channels": list(sizes.unet_channels),
        "cross_attention_dim": sizes.text_width,
        "down_block_types": ["CrossAttnDownBlock2D"] * levels,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": LATENT_CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": sizes.norm_groups,
        "out_channels": LATENT_CHANNELS,
        "sample_size": sizes.image_size // sizes.factor,
        "up_block_types": ["CrossAttnUpBlock2D"] * levels,
    }


def _text_encoder(sizes: Sizes, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": tokenizer.bos_id,
        # the weights are stored in half precision, in which transformers would compute otherwise
        "dtype": "float32",
        "eos_token_id": tokenizer.eos_id,
        "hidden_act": "quick_gelu",
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": tokenizer.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, sizes.text_width // 32),
        "num_hidden_layers": sizes.text_layers,
        "pad_token_id": tokenizer.pad_id,
        "projection_dim": sizes.text_width,
        "vocab_size": len(tokenizer.vocab),
    }
