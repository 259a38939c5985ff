# SPDX-License-Identifier: MIT
"""A small pipeline as a Checkpoint, with random weights of jaxgen's own networks (for tests)."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.nn import autoencoder_kl, clip, unet
from jaxgen.weights import configs, diffusers, layout, tensors, tokenizer
from support import clip_words

VOCAB, MERGES = clip_words.small_vocabulary()

CONFIGS = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "sample_size": 8,
        "act_fn": "silu",
        "class_embed_type": None,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(VOCAB),
        "eos_token_id": len(VOCAB) - 1,
    },
}
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1}


def checkpoint(seed: int = 0) -> diffusers.Checkpoint:
    """A whole pipeline in memory; its tensors are random numbers from `seed`."""
    rng = np.random.default_rng(seed)
    components = {}
    for name, config in CONFIGS.items():
        component = diffusers.Component(CLASSES[name], config, {})
        stored = layout.to_tensors(abstract(component), configs.conv_1x1(config))
        values = {n: rng.normal(size=t.shape).astype(np.float32) for n, t in stored.items()}
        lazy = {n: tensors.from_array(array) for n, array in values.items()}
        components[name] = component._replace(tensors=lazy)
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    tokens = {"tokenizer": tokenizer.build(VOCAB, MERGES)}
    return diffusers.Checkpoint(index, components, tokens, SCHEDULER)


def abstract(component: diffusers.Component):
    """Shapes of the parameters that jaxgen's network of a component has."""
    fields = diffusers.fields(component)
    match component.class_name:
        case "UNet2DConditionModel":
            text = jnp.zeros((1, 1, fields["cross_attention_dim"]))
            module = unet.UNet2DConditionModel(**fields)
            inputs = [jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), text]
        case "AutoencoderKL":
            module, inputs = autoencoder_kl.AutoencoderKL(**fields), [jnp.zeros((1, 8, 8, 3))]
        case _:
            module, inputs = clip.CLIPTextModel(**fields), [jnp.zeros((1, 1), jnp.int32)]
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
