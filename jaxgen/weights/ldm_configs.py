# SPDX-License-Identifier: MIT
"""The configs that diffusers has for a single-file checkpoint, from its kind and its shapes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxgen import fields, files
from jaxgen.weights.config_tables import SCALING_FACTOR
from jaxgen.weights.tensors import Tensor

SHAPES = Mapping[str, Tensor]

_NETWORKS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_FIRST = {"text_encoder": "CLIPTextModel"}
_SECOND = {"text_encoder_2": "CLIPTextModelWithProjection"}
CLASSES = {
    "v1": {**_NETWORKS, **_FIRST},
    "v2": {**_NETWORKS, **_FIRST},
    "xl": {**_NETWORKS, **_FIRST, **_SECOND},
    "playground": {**_NETWORKS, **_FIRST, **_SECOND},
    "refiner": {**_NETWORKS, **_SECOND},
}
_END, _MARK = "<|endoftext|>", "!"
PADDING = {
    "v1": {"tokenizer": _END},
    "v2": {"tokenizer": _MARK},
    "xl": {"tokenizer": _END, "tokenizer_2": _MARK},
    "playground": {"tokenizer": _END, "tokenizer_2": _MARK},
    "refiner": {"tokenizer_2": _MARK},
}
OF_XL = ("xl", "playground", "refiner")  # their UNets take pooled text and sizes
SAMPLE_SIZE = {"v1": 64, "v2": 96} | dict.fromkeys(OF_XL, 128)
# how the published autoencoders scale their latents
_XL_SCALING = {"scaling_factor": 0.13025}
SCALING: dict[str, dict[str, Any]] = {
    "v1": {"scaling_factor": SCALING_FACTOR},
    "v2": {"scaling_factor": SCALING_FACTOR},
    "xl": _XL_SCALING,
    "playground": {
        "scaling_factor": 0.5,
        "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    },
    "refiner": _XL_SCALING,
}
EDM = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
}
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "trained_betas": None,
}


def index(kind: str, inpainting: bool) -> dict[str, Any]:
    """The model_index.json of the published model of this kind, without the components."""
    if kind == "refiner":
        options = {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
        return {"_class_name": "StableDiffusionXLImg2ImgPipeline", **options}
    xl, task = "XL" if kind in OF_XL else "", "Inpaint" if inpainting else ""
    option = {"force_zeros_for_empty_prompt": True} if xl else {"requires_safety_checker": False}
    return {"_class_name": f"StableDiffusion{xl}{task}Pipeline", **option}


def infer(class_name: str, tensors: SHAPES, kind: str | None) -> dict[str, Any]:
    """The config.json of a component. Raises ValueError when the shapes fit no such network.

    kind: None is for an autoencoder by itself, whose scaling is not known.
    """
    makers: dict[str, Callable[[SHAPES, Any], dict]] = {
        "UNet2DConditionModel": _unet,
        "AutoencoderKL": _autoencoder_kl,
        "CLIPTextModel": _clip_text,
        "CLIPTextModelWithProjection": _clip_text,
    }
    try:
        config = makers[class_name](tensors, kind)
    except KeyError as error:
        lacking = files.printable(error)
        raise ValueError(
            f"the checkpoint's {class_name} lacks {lacking}; it is incomplete, or another network"
        ) from None
    except IndexError:
        raise ValueError(f"the checkpoint's {class_name} has tensors of the wrong rank") from None
    return config if class_name.startswith("CLIPText") else {"_class_name": class_name, **config}


def scheduler(
    kind: str, stored: Mapping[str, Tensor], prediction_type: str | None, inpainting: bool = False
) -> dict[str, Any]:
    """The scheduler_config.json that the published model of this kind has, inpainting ones apart:
    SD 1's has the scheduler of SD 2, and SD 2's predicts noise with that of SD 1.

    Files made for v prediction can say so by an empty tensor `v_pred`, and for betas rescaled to
    zero terminal SNR by one called `ztsnr`.
    """
    if prediction_type is None:
        prediction_type = "epsilon" if inpainting else _prediction_type(kind, stored)
    if kind == "playground":
        return predicting(EDM, prediction_type)
    config = predicting(BETAS, prediction_type)
    if (kind, inpainting) in (("v1", False), ("v2", True)):
        return {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **config}
    if kind in ("v1", "v2"):
        return {"_class_name": "DDIMScheduler", **config}
    spacing = {"timestep_spacing": "leading", "interpolation_type": "linear"}
    config = {"_class_name": "EulerDiscreteScheduler", **config, **spacing}
    return {**config, "rescale_betas_zero_snr": True} if "ztsnr" in stored else config


def predicting(scheduler_config: Mapping[str, Any], prediction_type: str) -> dict[str, Any]:
    """The config of a scheduler for a UNet that returns this: noise, a velocity or the sample."""
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(
            f"prediction_type is {fields.shown(prediction_type)}; use 'epsilon', 'v_prediction' or "
            "'sample'"
        )
    config = {**scheduler_config, "prediction_type": prediction_type}
    defaulted = config.get("_use_default_values")
    if isinstance(defaulted, list | tuple):  # it is stated now
        config["_use_default_values"] = [key for key in defaulted if key != "prediction_type"]
    return config


def _prediction_type(kind: str, stored: Mapping[str, Tensor]) -> str:
    if kind == "v2":  # diffusers' rule: only 2.0-base tells itself apart, by its training step
        step = stored.get("global_step")
        known = step is not None and int(step.read().reshape(-1)[0]) == 875000
        return "epsilon" if known else "v_prediction"
    return "v_prediction" if "v_pred" in stored else "epsilon"


def _unet(tensors: SHAPES, kind: str) -> dict[str, Any]:
    counts = _counts(tensors)
    levels = counts.get("down_blocks", 0)
    channels = [tensors[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)]
    attends = [f"down_blocks.{i}.attentions.0.norm.weight" in tensors for i in range(levels)]
    depths = [
        counts.get(f"down_blocks.{i}.attentions.0.transformer_blocks", 1) for i in range(levels)
    ]
    mid = "mid_block.attentions.0."
    depths[-1] = counts[mid + "transformer_blocks"]
    config: dict[str, Any] = {
        "sample_size": SAMPLE_SIZE[kind],
        "in_channels": tensors["conv_in.weight"].shape[1],
        "out_channels": tensors["conv_out.weight"].shape[0],
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "layers_per_block": counts.get("down_blocks.0.resnets", 0),
        "transformer_layers_per_block": depths if len(set(depths)) > 1 else depths[0],
        "cross_attention_dim": tensors[mid + "transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "use_linear_projection": len(tensors[mid + "proj_in.weight"].shape) == 2,
        # SD 1 has 8 heads at every level, its successors heads of 64 channels.
        "attention_head_dim": 8 if kind == "v1" else [max(1, c // 64) for c in channels],
        "norm_num_groups": 32,
    }
    if "add_embedding.linear_1.weight" in tensors:
        if kind not in OF_XL:
            raise ValueError("this UNet takes image embeddings (unCLIP), which is not implemented")
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = 256
        size = tensors["add_embedding.linear_1.weight"].shape[1]
        config["projection_class_embeddings_input_dim"] = size
    return config


def _autoencoder_kl(tensors: SHAPES, kind: str | None) -> dict[str, Any]:
    counts = _counts(tensors)
    levels = counts.get("encoder.down_blocks", 0)
    of_kind = {} if kind is None else {
        "sample_size": 8 * SAMPLE_SIZE[kind],
        **SCALING[kind],
        "force_upcast": kind in OF_XL,
    }  # fmt: skip
    return {
        **of_kind,
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "block_out_channels": [
            tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0]
            for i in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": counts.get("encoder.down_blocks.0.resnets", 0),
        "norm_num_groups": 32,
    }


def _clip_text(tensors: SHAPES, kind: str) -> dict[str, Any]:
    embedding = tensors["text_model.embeddings.token_embedding.weight"]
    vocab_size, hidden = embedding.shape[0], embedding.shape[1]
    projection = tensors.get("text_projection.weight")
    is_clip_l = kind != "v2" and projection is None
    return {
        "architectures": ["CLIPTextModel" if projection is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _counts(tensors).get("text_model.encoder.layers", 0),
        "num_attention_heads": max(1, hidden // 64),
        "max_position_embeddings": tensors["text_model.embeddings.position_embedding.weight"].shape[
            0
        ],
        "hidden_act": "quick_gelu" if is_clip_l else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": hidden if projection is None else projection.shape[0],
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": 1,
    }


def _counts(tensors: SHAPES) -> dict[str, int]:
    """Name of a list of modules -> how many consecutive numbers from 0 on it has."""
    numbers: dict[str, set[int]] = {}
    for name in tensors:
        for match in re.finditer(r"\.(\d{1,6})(?=\.)", name):
            numbers.setdefault(name[: match.start()], set()).add(int(match[1]))
    return {
        name: next(i for i in range(len(present) + 1) if i not in present)
        for name, present in numbers.items()
    }
