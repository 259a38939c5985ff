# SPDX-License-Identifier: MIT
"""Writes small adapters for the small checkpoints, in every file format (for tests)."""

import json
import struct

import numpy as np

from jaxgen.weights import layout, tensors

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
RESNET = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.1.self_attn.q_proj"
KOHYA = {
    ("unet", UNET): "lora_unet_" + UNET.replace(".", "_"),
    ("text_encoder", TEXT): "lora_te_" + TEXT.replace(".", "_"),
}
LDM = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"


def write(path, values, metadata=None, dtype=np.float32):
    """A safetensors file of arrays, written by hand, with metadata as trainers leave them."""
    arrays = {name: np.asarray(array, dtype) for name, array in values.items()}
    header, offset = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": tensors.CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def draw(rng, *shape):
    return rng.normal(0, 0.3, shape).astype(np.float32)


def weight(pipe, component, module, leaf="weight"):
    """A weight of a pipeline in PyTorch's layout, float64."""
    stored = layout.to_tensors(pipe.params[component], conv_1x1=())
    return np.asarray(stored[f"{module}.{leaf}"].read(), np.float64)


def read_back(path):
    return {name: tensor.read() for name, tensor in tensors.open_file(path).items()}
