# SPDX-License-Identifier: MIT
"""config.json of diffusers' networks -> fields of jaxgen's modules; nothing in it is passed over.

Every key of a config is one of three: a FIELD of the module of the same name, a FIXED option of
which jaxgen implements only some values, or one of the IGNORED keys that do not change the network.
Anything else is an error, and absent keys take the defaults of diffusers' (transformers') class.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxgen.weights import layout

MAX_WIDTH = 2**15  # channels and features; the widest layer of XL has 10240
MAX_LAYERS = 128
MAX_LEVELS = 8
MAX_TOKENS = 2**20
LISTED = 12  # faults that an error names


class Field(NamedTuple):
    """A key that becomes a field: its default, which values it may have, and those in words."""

    default: Any
    accepts: Callable[[Any], bool]
    words: str


class Table(NamedTuple):
    """How to read the config of one class."""

    fields: dict[str, Field]
    fixed: dict[str, tuple]  # name -> the values that jaxgen implements
    ignored: tuple[str, ...]


def unet_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of UNet2DConditionModel. Raises ValueError for what jaxgen does not implement."""
    return _read(config, UNET, "UNet2DConditionModel")


def autoencoder_kl_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of AutoencoderKL; an absent scaling_factor is 0.18215."""
    return _read(config, AUTOENCODER_KL, "AutoencoderKL")


def clip_text_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of CLIPTextModel and CLIPTextModelWithProjection."""
    return _read(config, CLIP_TEXT, "CLIPTextModel")


def conv_1x1(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that diffusers stores as 1x1 convolutions, for `weights.to_tensors`."""
    if config.get("use_linear_projection"):
        return layout.CONV_1X1
    return (*layout.CONV_1X1, "proj_in", "proj_out")  # of the UNet of SD 1; no other has these


def _read(config: Mapping[str, Any], table: Table, name: str) -> dict[str, Any]:
    faults = []
    for key, value in config.items():
        if key in table.fields:
            field = table.fields[key]
            if not field.accepts(value):
                faults.append(f"{key} = {_show(value)}; expected {field.words}")
        elif key in table.fixed:
            if not any(value == v and type(value) in _TYPES[type(v)] for v in table.fixed[key]):
                known = " or ".join(repr(v) for v in table.fixed[key])
                faults.append(f"{key} = {_show(value)}; jaxgen implements {known}")
        elif key not in table.ignored + BOOKKEEPING and value is not None:
            faults.append(f"{key[:80]} = {_show(value)}; jaxgen does not know this option")
    if faults:
        raise ValueError(
            f"the {name} config asks for what jaxgen does not implement: "
            + " | ".join(faults[:LISTED])
        )
    return {key: _tuples(config.get(key, f.default)) for key, f in table.fields.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


# 1.0 in JSON is 1 in a table, but True is neither.
_TYPES = {
    int: (int, float),
    float: (int, float),
    bool: (bool,),
    str: (str,),
    type(None): (type(None),),
}


def _is_int(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_list(value: Any, item: Callable[[Any], bool]) -> bool:
    return (
        isinstance(value, list | tuple) and 0 < len(value) <= MAX_LEVELS and all(map(item, value))
    )


def _count(default: Any, most: int = MAX_WIDTH, least: int = 1, none: bool = False) -> Field:
    """An integer, or null where that means "not there"."""
    words = f"an integer from {least} to {most}" + (" or null" if none else "")
    return Field(default, lambda v: (none and v is None) or _is_int(v, least, most), words)


def _counts(default: Any, most: int = MAX_WIDTH, none: bool = False) -> Field:
    """One integer, or one a level; a level's may again be a list, one integer a layer."""

    def accepts(v: Any) -> bool:
        one = _is_int(v, 1, most) or (none and v is None)
        return one or _is_list(
            v, lambda w: _is_int(w, 1, most) or _is_list(w, lambda x: _is_int(x, 1, most))
        )

    return Field(default, accepts, f"integers from 1 to {most}, at most {MAX_LEVELS} of them")


def _number(default: Any, least: float, most: float, none: bool = False) -> Field:
    def accepts(v: Any) -> bool:
        number = isinstance(v, int | float) and not isinstance(v, bool)
        return (none and v is None) or (number and least <= v <= most)

    return Field(default, accepts, f"a number from {least} to {most}")


def _numbers() -> Field:
    """A list of numbers, one a latent channel, or null."""

    def accepts(v: Any) -> bool:
        return v is None or (
            isinstance(v, list | tuple)
            and 0 < len(v) <= 256
            and all(isinstance(w, int | float) and not isinstance(w, bool) for w in v)
        )

    return Field(None, accepts, "a list of numbers or null")


def _choice(default: Any, *values: Any) -> Field:
    words = " or ".join(repr(v) for v in values)
    return Field(default, lambda v: isinstance(v, str | bool | None) and v in values, words)


def _blocks(default: tuple[str, ...], *names: str) -> Field:
    words = f"a list of {' or '.join(names)}"
    return Field(default, lambda v: _is_list(v, lambda w: isinstance(w, str) and w in names), words)


def _flag(default: bool) -> Field:
    return Field(default, lambda v: isinstance(v, bool), "true or false")


# Written by save_pretrained into every config; none of it describes the network.
BOOKKEEPING = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")

UNET = Table(
    fields={
        "sample_size": _counts(None, none=True),
        "in_channels": _count(4),
        "out_channels": _count(4),
        "flip_sin_to_cos": _flag(True),
        "freq_shift": _number(0, 0, 1),
        "down_block_types": _blocks(
            ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "CrossAttnDownBlock2D", "DownBlock2D"
        ),
        "mid_block_type": _choice(
            "UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None
        ),
        "up_block_types": _blocks(
            ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "CrossAttnUpBlock2D", "UpBlock2D"
        ),
        "block_out_channels": _counts((320, 640, 1280, 1280)),
        "layers_per_block": _counts(2, MAX_LAYERS),
        "norm_num_groups": _count(32),
        "norm_eps": _number(1e-5, 1e-12, 1e-1),
        "cross_attention_dim": _count(1280),
        "transformer_layers_per_block": _counts(1, MAX_LAYERS),
        "reverse_transformer_layers_per_block": _counts(None, MAX_LAYERS, none=True),
        "attention_head_dim": _counts(8),
        "num_attention_heads": _counts(None, none=True),
        "use_linear_projection": _flag(False),
        "addition_embed_type": _choice(None, None, "text_time"),
        "addition_time_embed_dim": _count(None, none=True),
        "projection_class_embeddings_input_dim": _count(None, none=True),
        "time_cond_proj_dim": _count(None, none=True),
    },
    fixed={
        "center_input_sample": (False,),
        "only_cross_attention": (False,),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1,),
        "act_fn": ("silu", "swish"),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "dual_cross_attention": (False,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "resnet_time_scale_shift": ("default",),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None,),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,),
    },
    # upcast_attention: jaxgen's softmax is float32 in any case. dropout: inference has none.
    # addition_embed_type_num_heads belongs to addition_embed_types that are rejected.
    ignored=("upcast_attention", "dropout", "addition_embed_type_num_heads"),
)

AUTOENCODER_KL = Table(
    fields={
        "in_channels": _count(3),
        "out_channels": _count(3),
        "down_block_types": _blocks(("DownEncoderBlock2D",), "DownEncoderBlock2D"),
        "up_block_types": _blocks(("UpDecoderBlock2D",), "UpDecoderBlock2D"),
        "block_out_channels": _counts((64,)),
        "layers_per_block": _count(1, MAX_LAYERS),
        "latent_channels": _count(4),
        "norm_num_groups": _count(32),
        "scaling_factor": _number(0.18215, 1e-6, 1e6),
        "shift_factor": _number(None, -1e6, 1e6, none=True),
        "latents_mean": _numbers(),
        "latents_std": _numbers(),
        "use_quant_conv": _flag(True),
        "use_post_quant_conv": _flag(True),
        "mid_block_add_attention": _flag(True),
    },
    fixed={"act_fn": ("silu", "swish")},
    # force_upcast is a warning about float16, which jaxgen never computes this network in.
    ignored=("sample_size", "force_upcast"),
)

CLIP_TEXT = Table(
    fields={
        "vocab_size": _count(49408, MAX_TOKENS),
        "hidden_size": _count(512),
        "intermediate_size": _count(2048),
        "projection_dim": _count(512),
        "num_hidden_layers": _count(12, MAX_LAYERS),
        "num_attention_heads": _count(8),
        "max_position_embeddings": _count(77),
        "hidden_act": _choice("quick_gelu", "quick_gelu", "gelu"),
        "layer_norm_eps": _number(1e-5, 1e-12, 1e-1),
        "eos_token_id": _count(49407, MAX_TOKENS, least=0),
    },
    fixed={"model_type": ("clip_text_model",), "is_decoder": (False,)},
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
