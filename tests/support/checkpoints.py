# SPDX-License-Identifier: MIT
"""Small checkpoints of each family, their weights a function of their names (for tests).

The same numbers on every machine, so that stored results of PyTorch diffusers stay valid.
"""

from jaxgen.stable_diffusion import loading
from jaxgen.weights import diffusers, tokenizer
from support import clip_words, networks

VOCAB, MERGES = clip_words.small_vocabulary()
SIZE = 32  # pixels
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

_UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "block_out_channels": [16, 32],
    "norm_num_groups": 8, "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 24,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
_XL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 40,
    "transformer_layers_per_block": [1, 2], "attention_head_dim": [2, 4],
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 20,
}  # fmt: skip
UNETS = {
    "sd1": _UNET,
    "sd2": _UNET | {"use_linear_projection": True, "attention_head_dim": [2, 4]},
    "inpaint": _UNET | {"in_channels": 9},
    "xl": _UNET | _XL,
    "inpaint_xl": _UNET | _XL | {"in_channels": 9},
    "refiner": _UNET
    | _XL
    | {"cross_attention_dim": 24, "projection_class_embeddings_input_dim": 5 * 8 + 20},
}
_ONE_LEVEL = {
    "block_out_channels": [8], "norm_num_groups": 4, "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["UpBlock2D"], "mid_block_type": None, "transformer_layers_per_block": 1,
    "attention_head_dim": 2,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "norm_num_groups": 4,
    "layers_per_block": 1, "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "scaling_factor": 0.18215,
}  # fmt: skip
_CLIP = {
    "model_type": "clip_text_model", "hidden_size": 24, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": len(VOCAB),
    "bos_token_id": len(VOCAB) - 2, "eos_token_id": len(VOCAB) - 1, "hidden_act": "quick_gelu",
}  # fmt: skip
SCHEDULERS = {
    "sd1": {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False,
            "set_alpha_to_one": False, **BETAS},
    "sd2": {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False,
            "set_alpha_to_one": False, "prediction_type": "v_prediction", **BETAS},
    "xl": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading",
           "steps_offset": 1, **BETAS},
}  # fmt: skip
CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
    "xl": "StableDiffusionXLPipeline",
    "inpaint_xl": "StableDiffusionXLInpaintPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}


def checkpoint(kind="sd1"):
    """The whole pipeline of a kind in memory: sd1, sd2 (v-prediction), inpaint (9 channels), xl,
    inpaint_xl, refiner."""
    components = {
        "unet": _component("UNet2DConditionModel", UNETS[kind]),
        "vae": _component("AutoencoderKL", VAE),
        "text_encoder": _component("CLIPTextModel", _CLIP),
    }
    tokens = {"tokenizer": tokenizer.build(VOCAB, MERGES, _padding("sd2" if kind == "sd2" else ""))}
    index = {"_class_name": CLASSES[kind], "requires_safety_checker": False}
    of_xl = kind in ("xl", "inpaint_xl", "refiner")
    if of_xl:
        small = _CLIP | {"hidden_size": 16, "hidden_act": "quick_gelu"}
        second = _CLIP | {"hidden_size": 24, "hidden_act": "gelu", "projection_dim": 20}
        components["text_encoder"] = _component("CLIPTextModel", small)
        components["text_encoder_2"] = _component("CLIPTextModelWithProjection", second)
        tokens["tokenizer_2"] = tokenizer.build(VOCAB, MERGES, _padding("xl"))
        index = {"_class_name": CLASSES[kind], "force_zeros_for_empty_prompt": kind != "refiner"}
    if kind == "refiner":
        del components["text_encoder"], tokens["tokenizer"]
        index["requires_aesthetics_score"] = True
    scheduler = SCHEDULERS.get("xl" if of_xl else kind, SCHEDULERS["sd1"])
    return diffusers.Checkpoint(index, components, tokens, scheduler)


def small(kind="sd1", **changes):
    """A checkpoint whose UNet has one level, where it takes long to compile: gradients, meshes."""
    whole = checkpoint(kind)
    unet = _component("UNet2DConditionModel", UNETS[kind] | _ONE_LEVEL | changes)
    return whole._replace(components={**whole.components, "unet": unet})


def shapes(component):
    """The shapes of the parameters that jaxgen's network of a component has."""
    names = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}
    network = loading.MODULES[names.get(component.class_name, "text_encoder")]
    return loading.shapes(network(**diffusers.fields(component)))


def _component(class_name, config):
    component = diffusers.Component(class_name, config, {})
    return diffusers.with_params(component, networks.weights_by_path(shapes(component)))


def _padding(kind):
    return {"pad_token": "!"} if kind in ("sd2", "xl") else None
