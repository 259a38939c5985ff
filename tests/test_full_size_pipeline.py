# SPDX-License-Identifier: MIT
"""A pipeline of Stable Diffusion 1.5's size with random weights, with JAXGEN_FULL_SIZE=1."""

import copy
import gc
import os
import time

import jax.numpy as jnp
import numpy as np
import pytest
from support import checkpoints
from support.networks import FULL_SIZE_UNETS, psnr

from jaxgen.stable_diffusion.pipeline import StableDiffusion

pytestmark = [
    pytest.mark.full_size,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.environ.get("JAXGEN_FULL_SIZE") != "1",
        reason="takes long and gigabytes; set JAXGEN_FULL_SIZE=1 to run",
    ),
]
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
CLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12,
}  # fmt: skip


def test_bfloat16_is_close_to_float32_at_full_size(monkeypatch):
    """On CPU, where bfloat16 is slow: few steps of a small picture. Random weights."""
    unet = {"_class_name": "UNet2DConditionModel", **FULL_SIZE_UNETS["sd15"]}
    monkeypatch.setitem(checkpoints.UNETS, "sd1", unet)
    monkeypatch.setattr(checkpoints, "VAE", VAE)
    monkeypatch.setattr(checkpoints, "_CLIP", checkpoints._CLIP | CLIP)
    checkpoint = checkpoints.checkpoint("sd1")

    settings = {"num_steps": 4, "sampler": "euler", "height": 256, "width": 256, "seed": 3}
    latents, images = {}, {}
    for dtype in (jnp.float32, jnp.bfloat16):
        pipe = StableDiffusion(copy.copy(checkpoint), dtype)
        start = time.perf_counter()
        latents[dtype] = pipe("a photo of the cat", output="latent", **settings)
        first = time.perf_counter() - start
        latents[dtype] = pipe("a photo of the cat", output="latent", **settings)
        again = time.perf_counter() - start - first
        images[dtype] = pipe.decode(latents[dtype])
        print(f"{np.dtype(dtype).name}: first call {first:.0f} s, second {again:.1f} s")
        del pipe
        gc.collect()
    found = [psnr(made[jnp.bfloat16], made[jnp.float32]) for made in (latents, images)]
    print(f"bfloat16 against float32: latents {found[0]:.1f} dB, images {found[1]:.1f} dB")
    assert found[1] > 30  # 45.2 dB and 40.5 dB found
