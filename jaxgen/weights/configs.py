# SPDX-License-Identifier: MIT
"""config.json of diffusers' networks -> fields of jaxgen's modules, checked by one table a class.

A key of a table becomes a field of the module of the same name, or is one of the OPTIONS, of which
jaxgen implements only the values that the table lists. Other keys do not describe the network, or
the class in diffusers (transformers) does not know them: they are passed over, as there, and
`unknown_keys` names them. Absent keys take the defaults of that class.
"""

from collections.abc import Mapping
from typing import Any

from jaxgen import fields
from jaxgen.weights import layout
from jaxgen.weights.config_tables import BOOKKEEPING, TABLES

SAME = ("cross_attention_dim", "only_cross_attention")  # diffusers takes a list of one a level too


def unet_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of UNet2DConditionModel. Raises ValueError for what jaxgen does not implement."""
    return _read(config, "UNet2DConditionModel")


def autoencoder_kl_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of AutoencoderKL; an absent scaling_factor is 0.18215."""
    return _read(config, "AutoencoderKL")


def autoencoder_tiny_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of AutoencoderTiny."""
    return _read(config, "AutoencoderTiny")


def controlnet_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ControlNetModel."""
    return _read(config, "ControlNetModel")


def clip_text_fields(config: Mapping[str, Any], projected: bool = False) -> dict[str, Any]:
    """The fields of CLIPTextModel, or `projected` of CLIPTextModelWithProjection."""
    values = _read(config, "CLIPTextModel")
    pools = projected or "eos_token_id" in config  # else no one asks where a text ends
    if pools and values["eos_token_id"] >= values["vocab_size"]:
        raise ValueError(
            f"eos_token_id={values['eos_token_id']} lies beyond the vocabulary of "
            f"{values['vocab_size']} tokens; take the config of the published model"
        )
    return values


def unknown_keys(class_name: str, config: Mapping[str, Any]) -> list[str]:
    """The keys of a config that its class does not know, and that are passed over."""
    table = TABLES["CLIPTextModel" if class_name.startswith("CLIPText") else class_name]
    known = {*table.fields, *table.options, *table.ignored, *BOOKKEEPING}
    return sorted(key for key in config if key not in known)


def conv_1x1(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that diffusers stores as 1x1 convolutions, for `weights.to_tensors`."""
    if config.get("use_linear_projection"):
        return layout.CONV_1X1
    return (*layout.CONV_1X1, "proj_in", "proj_out")  # of the UNet of SD 1; no other has these


def _read(config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    table = TABLES[class_name]
    config = {**config, **{key: _same(config[key]) for key in SAME if key in config}}
    values = fields.check(
        {**table.fields, **table.options}, config, f"the {class_name} config", table.rules
    )
    return {key: _tuples(values[key]) for key in table.fields}


def _same(value: Any) -> Any:
    """The one value that a list says for every level; a list of several stays, and is refused."""
    is_same = isinstance(value, list | tuple) and value and all(v == value[0] for v in value)
    return value[0] if is_same else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
