# SPDX-License-Identifier: MIT
"""Configurations of the networks, small and full-size, and weights for them that need no file.

Configurations are those of config.json and serve jaxgen's modules and PyTorch's alike. Weights
are a function of their path in the tree, so that stored outputs stay valid without stored weights.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.nn.stable_diffusion.autoencoder_tiny import AutoencoderTiny
from jaxgen.nn.stable_diffusion.clip import CLIPTextModel
from jaxgen.nn.stable_diffusion.unet import UNet2DConditionModel

_SD1 = {
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "cross_attention_dim": 24,
}
UNETS = {
    "sd1": _SD1,
    "inpaint": _SD1 | {"in_channels": 9, "layers_per_block": 2},
    "sd2": _SD1 | {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True},
    "xl": {
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": (2, 4, 4),
        "cross_attention_dim": 24,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    },
}
FULL_SIZE_UNETS = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sd21": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "xl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": UNETS["xl"]["down_block_types"],
        "up_block_types": UNETS["xl"]["up_block_types"],
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TINY = {  # of AutoencoderTiny
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (12, 12, 12),
    "num_encoder_blocks": (1, 2, 1),
    "num_decoder_blocks": (2, 1, 1),
}
_CLIP = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 20,
}
CLIPS = {
    "clip_l": _CLIP | {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "openclip_h": _CLIP | {"hidden_act": "gelu", "eos_token_id": 999},
    "openclip_bigg": _CLIP | {"hidden_act": "gelu", "eos_token_id": 2, "with_projection": True},
}
CLIP_ONLY_OURS = ("with_projection",)


def make_unet(config, dtype=jnp.float32):
    """The module and the shapes of its parameters."""
    unet = UNet2DConditionModel(**config, dtype=dtype)
    return unet, shapes_of(unet, *unet_inputs(config))


def make_vae(config, dtype=jnp.float32):
    vae = AutoencoderKL(**config, dtype=dtype)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return vae, shapes_of(vae, jnp.zeros((1, factor, factor, 3)))


def make_tiny(config, dtype=jnp.float32):
    tiny = AutoencoderTiny(**config, dtype=dtype)
    return tiny, shapes_of(tiny, jnp.zeros((1, tiny.factor, tiny.factor, 3)))


def make_clip(config, dtype=jnp.float32):
    clip = CLIPTextModel(**config, dtype=dtype)
    return clip, shapes_of(clip, jnp.zeros((1, 77), jnp.int32))


def shapes_of(module, *inputs):
    """The parameter tree as shapes; nothing is computed or allocated."""
    if hasattr(module, "dtype"):
        module = module.clone(dtype=jnp.float32)  # parameters are alike in every type
    kinds = tuple((np.shape(x), jnp.result_type(x)) for x in inputs)
    return jax.tree.map(lambda leaf: leaf, _traced_shapes(module, kinds))


@functools.cache  # tracing takes a second, and several tests have the same network
def _traced_shapes(module, kinds):
    inputs = [jax.ShapeDtypeStruct(*kind) for kind in kinds]
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def unet_inputs(config, batch=2, size=16, tokens=77):
    """Seeded latents, fractional and integer timesteps, text, and XL's pooled text and sizes."""
    rng = np.random.default_rng(7)
    sample = rng.standard_normal((batch, size, size, config.get("in_channels", 4)), np.float32)
    timesteps = np.array([946.42, 1.0, 500.0, 20.0][:batch], np.float32)
    text = rng.standard_normal((batch, tokens, config["cross_attention_dim"]), np.float32)
    if "addition_embed_type" not in config:
        return sample, timesteps, text
    pooled_dim = config["projection_class_embeddings_input_dim"]
    pooled_dim -= 6 * config["addition_time_embed_dim"]
    pooled = rng.standard_normal((batch, pooled_dim), np.float32)
    sizes = np.array([[1023, 767, 0, 3, 1024, 1000], [512, 640, 7, 0, 515, 640]] * batch)
    return sample, timesteps, text, pooled, sizes[:batch].astype(np.float32)


def vae_inputs():
    """A seeded image [2, 24, 16, 3] and a latent of its size [2, 3, 2, 4]."""
    rng = np.random.default_rng(9)
    image = rng.standard_normal((2, 24, 16, 3), np.float32)
    return image, rng.standard_normal((2, 3, 2, 4), np.float32)


def token_ids(batch=3, tokens=77, vocab_size=1000):
    """Rows that start, end at different places, and pad with the end token, as CLIP-L's do."""
    rng = np.random.default_rng(8)
    ids = rng.integers(0, vocab_size - 2, (batch, tokens)).astype(np.int32)
    ids[:, 0] = vocab_size - 2
    for row, length in enumerate((2, 9, tokens - 1, 30)[:batch]):
        ids[row, length:] = vocab_size - 1
    return ids


def norm_epsilons(module, *inputs, method=None):
    """The epsilon of every norm that a call runs through, by its path in the tree."""
    found = {}

    def record(call, args, kwargs, context):
        if hasattr(context.module, "epsilon"):
            found["/".join(context.module.path)] = context.module.epsilon
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, method=method), *inputs)
    return found


def weights_by_path(shapes, seed=0):
    """Parameters drawn from their path: kernels of unit gain, norms away from 1 and 0."""

    def draw(path, leaf):
        name = "/".join(key.key for key in path)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        noise = (rng.random(leaf.shape, np.float32) * 2 - 1) * np.sqrt(3, dtype=np.float32)
        match path[-1].key:
            case "kernel":
                return noise / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
            case "scale":
                return 1 + np.float32(0.3) * noise
            case _:
                return np.float32(0.3) * noise

    return jax.tree.map_with_path(draw, shapes)


def relative_error(actual, expected):
    """The norm of the difference over the norm of the expected array."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def psnr(actual, expected):
    """Peak signal-to-noise ratio in decibel, the peak being the expected array's range."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return 10 * np.log10(np.ptp(expected) ** 2 / np.mean((actual - expected) ** 2))
