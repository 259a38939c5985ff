# SPDX-License-Identifier: MIT
"""The tables of configs.py: for each class of diffusers its fields, their values and the rules."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxgen import fields
from jaxgen.fields import Field, Rule

MAX_WIDTH = 2**15  # channels and features; the widest layer of XL has 10240
MAX_LAYERS = 128
MAX_LEVELS = 8
MAX_TOKENS = 2**20
MAX_LATENT_CHANNELS = 256
SCALING_FACTOR = 0.18215  # of Stable Diffusion's autoencoder, and diffusers' default


class Table(NamedTuple):
    """How to read the config of one class."""

    fields: dict[str, Field]
    options: dict[str, Field]  # values that jaxgen implements; they need no field
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]  # known, and without effect on the network


# Kinds of fields


def _count(default: Any, most: int = MAX_WIDTH) -> Field:
    return fields.integer(default, 1, most)


def _widths(default: Any) -> Field:
    """One number of channels a level."""
    return fields.items(default, _count(None), most=MAX_LEVELS)


def _per_level(default: Any, most: int = MAX_WIDTH) -> Field:
    """One integer for all levels, or one a level."""
    one = _count(None, most)
    return fields.either(default, one, fields.items(None, one, most=MAX_LEVELS))


def _depths(default: Any) -> Field:
    """One integer for all levels, or a list of them."""
    return fields.either(default, _count(None, MAX_LAYERS), _list_of_depths(None))


def _list_of_depths(default: Any) -> Field:
    """One entry a level: an integer, or a list with one integer a layer."""
    one = _count(None, MAX_LAYERS)
    level = fields.either(None, one, fields.items(None, one, most=MAX_LAYERS))
    return fields.items(default, level, most=MAX_LEVELS)


def _blocks(default: tuple[str, ...], *names: str) -> Field:
    return fields.items(default, fields.choice(None, *names), most=MAX_LEVELS)


def _numbers_of_blocks(default: Any) -> Field:
    """One number of blocks a level, which may have none."""
    return fields.items(default, fields.integer(None, 0, MAX_LAYERS), most=MAX_LEVELS)


def _per_channel(default: Any, item: Field) -> Field:
    """Null, or one number a latent channel."""
    return fields.optional(fields.items(default, item, most=MAX_LATENT_CHANNELS))


# Rules between fields


def _of_half(half: str) -> tuple[str, str]:
    return f"{half}_block_out_channels", f"num_{half}_blocks"


def _levels(values: Mapping[str, Any]) -> int:
    return len(values["block_out_channels"])


def _have_length(values: Mapping[str, Any], keys: Iterable[str]) -> bool:
    listed = [values[key] for key in keys if isinstance(values.get(key), list | tuple)]
    return all(len(value) == _levels(values) for value in listed)


def _at_levels(values: Mapping[str, Any], key: str) -> list[Any]:
    value = values[key]
    return list(value) if isinstance(value, list | tuple) else [value] * _levels(values)


def _heads_divide(values: Mapping[str, Any]) -> bool:
    """Whether the heads divide the channels of every level that attends to the text."""
    key = "attention_head_dim" if values["num_attention_heads"] is None else "num_attention_heads"
    pairs = list(zip(values["block_out_channels"], _at_levels(values, key), strict=True))
    attends = [kind.startswith("CrossAttn") for kind in values["down_block_types"]]
    attends[-1] = attends[-1] or values["mid_block_type"] == "UNetMidBlock2DCrossAttn"
    attends = [a or b.startswith("CrossAttn") for a, b in
               zip(attends, values["up_block_types"][::-1], strict=True)]  # fmt: skip
    return all(width % heads == 0 for (width, heads), a in zip(pairs, attends, strict=True) if a)


def _depths_fit(values: Mapping[str, Any]) -> bool:
    """Whether depths that are given layer by layer are enough for the level's layers."""
    layers = _at_levels(values, "layers_per_block")
    down = _at_levels(values, "transformer_layers_per_block")
    up = values["reverse_transformer_layers_per_block"] or []
    fits = [d for d in zip(layers, down, strict=True) if isinstance(d[1], list | tuple)]
    above = [u for u in zip(layers[::-1], up, strict=False) if isinstance(u[1], list | tuple)]
    return all(len(d) >= n for n, d in fits) and all(len(u) > n for n, u in above)


PER_LEVEL = (
    "down_block_types", "up_block_types", "layers_per_block", "attention_head_dim",
    "num_attention_heads", "transformer_layers_per_block", "reverse_transformer_layers_per_block",
)  # fmt: skip
GROUPS = Rule(
    lambda v: all(width % v["norm_num_groups"] == 0 for width in v["block_out_channels"]),
    "norm_num_groups must divide every entry of block_out_channels",
)
LEVELS = "lists of blocks and levels must be as long as block_out_channels"
UNET_RULES = (
    Rule(lambda v: _have_length(v, PER_LEVEL), LEVELS),
    GROUPS,
    Rule(lambda v: v["block_out_channels"][0] % 2 == 0, "block_out_channels must begin even"),
    Rule(
        lambda v: not _have_length(v, PER_LEVEL) or _heads_divide(v),
        "the number of heads (attention_head_dim) must divide the channels of its level",
    ),
    Rule(
        lambda v: not _have_length(v, PER_LEVEL) or _depths_fit(v),
        "transformer depths that are lists must have one entry a layer",
    ),
)
HALVES = ("encoder", "decoder")  # of AutoencoderTiny
VAE_RULES = (
    Rule(lambda v: _have_length(v, ("down_block_types", "up_block_types")), LEVELS),
    GROUPS,
    Rule(
        lambda v: all(
            len(v[key] or ()) in (0, v["latent_channels"])
            for key in ("latents_mean", "latents_std")
        ),
        "latents_mean and latents_std must have one number for each of latent_channels",
    ),
)
TINY_RULES = (
    Rule(
        lambda v: all(len(set(v[f"{half}_block_out_channels"])) == 1 for half in HALVES),
        "encoder_block_out_channels and decoder_block_out_channels must each be one width",
    ),
    Rule(
        lambda v: len({len(v[key]) for half in HALVES for key in _of_half(half)}) == 1,
        "the four lists of channels and blocks must have one entry for each level",
    ),
)
CLIP_RULES = (
    Rule(
        lambda v: v["hidden_size"] % v["num_attention_heads"] == 0,
        "num_attention_heads must divide hidden_size",
    ),
)

# Written by save_pretrained into every config; none of it describes the network.
BOOKKEEPING = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")

_NOT_QUANTISED = {"quantization_config": fields.choice(None, None)}

_UNET = Table(
    fields={
        "sample_size": fields.optional(
            fields.either(None, _count(None), fields.items(None, _count(None), 2, 2))
        ),
        "in_channels": _count(4),
        "out_channels": _count(4),
        "flip_sin_to_cos": fields.flag(True),
        "freq_shift": fields.number(0, 0, 1),
        "down_block_types": _blocks(
            ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "CrossAttnDownBlock2D", "DownBlock2D"
        ),
        "mid_block_type": fields.choice(
            "UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None
        ),
        "up_block_types": _blocks(
            ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "CrossAttnUpBlock2D", "UpBlock2D"
        ),
        "block_out_channels": _widths((320, 640, 1280, 1280)),
        "layers_per_block": _per_level(2, MAX_LAYERS),
        "norm_num_groups": _count(32),
        "norm_eps": fields.number(1e-5, 1e-12, 1e-1),
        "cross_attention_dim": _count(1280),
        "transformer_layers_per_block": _depths(1),
        "reverse_transformer_layers_per_block": fields.optional(_list_of_depths(None)),
        "attention_head_dim": _per_level(8),
        "num_attention_heads": fields.optional(_per_level(None)),
        "use_linear_projection": fields.flag(False),
        "addition_embed_type": fields.choice(None, None, "text_time"),
        "addition_time_embed_dim": fields.optional(_count(None)),
        "projection_class_embeddings_input_dim": fields.optional(_count(None)),
        "time_cond_proj_dim": fields.optional(_count(None)),
    },
    options={
        **_NOT_QUANTISED,
        "center_input_sample": fields.choice(False, False),
        "only_cross_attention": fields.choice(False, False),
        "downsample_padding": fields.choice(1, 1),
        "mid_block_scale_factor": fields.choice(1, 1),
        "act_fn": fields.choice("silu", "silu", "swish"),
        "encoder_hid_dim": fields.choice(None, None),
        "encoder_hid_dim_type": fields.choice(None, None),
        "dual_cross_attention": fields.choice(False, False),
        "class_embed_type": fields.choice(None, None),
        "num_class_embeds": fields.choice(None, None),
        "resnet_time_scale_shift": fields.choice("default", "default"),
        "resnet_skip_time_act": fields.choice(False, False),
        "resnet_out_scale_factor": fields.choice(1, 1),
        "time_embedding_type": fields.choice("positional", "positional"),
        "time_embedding_dim": fields.choice(None, None),
        "time_embedding_act_fn": fields.choice(None, None),
        "timestep_post_act": fields.choice(None, None),
        "conv_in_kernel": fields.choice(3, 3),
        "conv_out_kernel": fields.choice(3, 3),
        "attention_type": fields.choice("default", "default"),
        "class_embeddings_concat": fields.choice(False, False),
        "mid_block_only_cross_attention": fields.choice(None, None, False),
        "cross_attention_norm": fields.choice(None, None),
    },
    rules=UNET_RULES,
    # upcast_attention: jaxgen's softmax is float32 in any case. dropout: inference has none.
    # addition_embed_type_num_heads belongs to addition_embed_types that are rejected.
    ignored=("upcast_attention", "dropout", "addition_embed_type_num_heads"),
)

_AUTOENCODER_KL = Table(
    fields={
        "in_channels": _count(3),
        "out_channels": _count(3),
        "down_block_types": _blocks(("DownEncoderBlock2D",), "DownEncoderBlock2D"),
        "up_block_types": _blocks(("UpDecoderBlock2D",), "UpDecoderBlock2D"),
        "block_out_channels": _widths((64,)),
        "layers_per_block": _count(1, MAX_LAYERS),
        "latent_channels": _count(4),
        "norm_num_groups": _count(32),
        "scaling_factor": fields.number(SCALING_FACTOR, 1e-6, 1e6),
        "shift_factor": fields.optional(fields.number(None, -1e6, 1e6)),
        "latents_mean": _per_channel(None, fields.number(None, -1e6, 1e6)),
        "latents_std": _per_channel(None, fields.number(None, 1e-6, 1e6)),
        "use_quant_conv": fields.flag(True),
        "use_post_quant_conv": fields.flag(True),
        "mid_block_add_attention": fields.flag(True),
    },
    options={**_NOT_QUANTISED, "act_fn": fields.choice("silu", "silu", "swish")},
    rules=VAE_RULES,
    # force_upcast is a warning about float16, which jaxgen never computes this network in.
    ignored=("sample_size", "force_upcast"),
)

_AUTOENCODER_TINY = Table(
    fields={
        "in_channels": _count(3),
        "out_channels": _count(3),
        "encoder_block_out_channels": _widths((64,) * 4),
        "decoder_block_out_channels": _widths((64,) * 4),
        "latent_channels": _count(4),
        "num_encoder_blocks": _numbers_of_blocks((1, 3, 3, 3)),
        "num_decoder_blocks": _numbers_of_blocks((3, 3, 3, 1)),
        "scaling_factor": fields.number(1.0, 1e-6, 1e6),
        "shift_factor": fields.optional(fields.number(0.0, -1e6, 1e6)),
    },
    options={
        **_NOT_QUANTISED,
        "act_fn": fields.choice("relu", "relu"),
        "upsampling_scaling_factor": fields.choice(2, 2),
        "upsample_fn": fields.choice("nearest", "nearest"),
    },
    rules=TINY_RULES,
    # the two numbers of latents are for storing them as bytes
    ignored=("force_upcast", "latent_magnitude", "latent_shift"),
)

_CLIP_TEXT = Table(
    fields={
        "vocab_size": _count(49408, MAX_TOKENS),
        "hidden_size": _count(512),
        "intermediate_size": _count(2048),
        "projection_dim": _count(512),
        "num_hidden_layers": _count(12, MAX_LAYERS),
        "num_attention_heads": _count(8),
        "max_position_embeddings": _count(77),
        "hidden_act": fields.choice("quick_gelu", "quick_gelu", "gelu"),
        "layer_norm_eps": fields.number(1e-5, 1e-12, 1e-1),
        "eos_token_id": fields.integer(49407, 0, MAX_TOKENS),
    },
    options={
        **_NOT_QUANTISED,
        "model_type": fields.choice("clip_text_model", "clip_text_model"),
        "is_decoder": fields.choice(False, False),
    },
    rules=CLIP_RULES,
    # How it was trained, saved or called; the network is the same.
    ignored=(
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dropout",
        "dtype",
        "gradient_checkpointing",
        "initializer_factor",
        "initializer_range",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
    ),
)

_OF_UNET_ONLY = {  # what the encoder half of a UNet does without
    "sample_size", "out_channels", "up_block_types", "reverse_transformer_layers_per_block",
    "time_cond_proj_dim",
}  # fmt: skip
_CONTROLNET = Table(
    fields={key: field for key, field in _UNET.fields.items() if key not in _OF_UNET_ONLY}
    | {
        "conditioning_channels": _count(3),
        "conditioning_embedding_out_channels": _widths((16, 32, 96, 256)),
        "controlnet_conditioning_channel_order": fields.choice("rgb", "rgb", "bgr"),
        "global_pool_conditions": fields.flag(False),
    },
    options=_UNET.options,
    rules=UNET_RULES[:3],
    ignored=_UNET.ignored,
)

TABLES = {
    "UNet2DConditionModel": _UNET,
    "AutoencoderKL": _AUTOENCODER_KL,
    "AutoencoderTiny": _AUTOENCODER_TINY,
    "ControlNetModel": _CONTROLNET,
    "CLIPTextModel": _CLIP_TEXT,
}
