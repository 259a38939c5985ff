# SPDX-License-Identifier: MIT
"""Writes tests/data/state_shapes.json.gz: names and shapes of the full-size torch networks.

Run from the repository root: python tests/oracle/make_state_shapes.py
"""

import gzip
import json
from pathlib import Path

import diffusers
import torch
import transformers

UNET_1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
UNET_2 = {
    "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}  # fmt: skip
UNET_XL = {
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip
CLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512,
}  # fmt: skip
CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
MODELS = {
    "v1": {"unet": UNET_1, "vae": VAE, "text_encoder": CLIP_L},
    "v2": {"unet": UNET_2, "vae": VAE, "text_encoder": CLIP_H},
    "xl": {"unet": UNET_XL, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
}


def main() -> None:
    result = {
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "models": {
            kind: {
                name: {"config": config, "shapes": _shapes(name, config)}
                for name, config in parts.items()
            }
            for kind, parts in MODELS.items()
        },
    }
    path = Path(__file__).resolve().parents[1] / "data" / "state_shapes.json.gz"
    text = json.dumps(result, separators=(",", ":"), sort_keys=True).encode()
    path.write_bytes(gzip.compress(text, mtime=0))
    print(path, path.stat().st_size, "bytes")


def _shapes(name: str, config: dict) -> dict[str, list[int]]:
    """Text encoders' names under text_model, as in every published file."""
    with torch.device("meta"):
        match name:
            case "unet":
                model = diffusers.UNet2DConditionModel(**config)
            case "vae":
                model = diffusers.AutoencoderKL(**config)
            case "text_encoder":
                model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
            case "text_encoder_2":
                config = transformers.CLIPTextConfig(**config)
                model = transformers.CLIPTextModelWithProjection(config)
    state = {n: list(t.shape) for n, t in model.state_dict().items() if "position_ids" not in n}
    if name == "text_encoder" and not any(n.startswith("text_model.") for n in state):
        state = {f"text_model.{n}": shape for n, shape in state.items()}
    return state


if __name__ == "__main__":
    main()
