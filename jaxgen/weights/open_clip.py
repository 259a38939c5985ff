# SPDX-License-Identifier: MIT
"""OpenCLIP's text encoder in SD 2.x and XL single files -> names of transformers' CLIPTextModel.

Mirrors diffusers' convert_open_clip_checkpoint; names from open_clip.transformer.TextTransformer.
"""

import re
from collections.abc import Mapping

from jaxgen.weights import tensors
from jaxgen.weights.tensors import Tensor

LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


def convert(stored: Mapping[str, Tensor], projected: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in the names of CLIPTextModel, and the names that were not understood.

    `projected` keeps the projection (XL); SD 2 does not use it.
    """
    result: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in stored.items():
        match = re.match(r"transformer\.resblocks\.(\d{1,4})\.(.+)", name)
        if name == "text_projection" and not projected:
            continue
        if match:
            new = _layer(f"text_model.encoder.layers.{match[1]}", match[2], tensor)
        elif name == "text_projection":
            new = {"text_projection.weight": tensors.transposed(tensor)}
        else:
            new = {ENDS[name]: tensor} if name in ENDS else {}
        result.update(new)
        unknown += [] if new else [name]
    return result, unknown


def _layer(layer: str, inner: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a block; the fused projection [3 D, ...] gives queries, keys and values."""
    if inner in ("attn.in_proj_weight", "attn.in_proj_bias") and tensor.shape:
        leaf, width = inner.rpartition("_")[2], tensor.shape[0] // 3
        return {
            f"{layer}.self_attn.{part}_proj.{leaf}": tensors.rows(
                tensor, i * width, (i + 1) * width
            )
            for i, part in enumerate("qkv")
        }
    module, _, leaf = inner.rpartition(".")
    return {f"{layer}.{LAYER[module]}.{leaf}": tensor} if module in LAYER else {}
