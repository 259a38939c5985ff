# SPDX-License-Identifier: MIT

"""Writes tests/data/networks.npz: what PyTorch computes for the small networks.

Run from the repository root: python tests/oracle/make_network_values.py
Inputs and weights are functions of fixed seeds (tests/support/networks.py), so outputs suffice.
"""

import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from support.networks import (
    CLIP_ONLY_OURS,
    CLIPS,
    TINY,
    UNETS,
    VAE,
    make_clip,
    make_tiny,
    make_unet,
    make_vae,
    token_ids,
    unet_inputs,
    vae_inputs,
    weights_by_path,
)
from torch_weights import nchw, nhwc, to_torch


def unet_values(name):
    config = UNETS[name]
    unet = to_torch(weights_by_path(make_unet(config)[1]), diffusers.UNet2DConditionModel(**config))
    sample, *conditions = unet_inputs(config)
    t, text, pooled, sizes = (*map(torch.from_numpy, conditions), None, None)[:4]
    added = {"text_embeds": pooled, "time_ids": sizes}
    return {f"unet/{name}": nhwc(unet(nchw(sample), t, text, added_cond_kwargs=added).sample)}


def vae_values():
    vae = to_torch(weights_by_path(make_vae(VAE)[1]), diffusers.AutoencoderKL(**VAE))
    x, z = vae_inputs()
    posterior = vae.encode(nchw(x)).latent_dist
    return {
        "vae/mean": nhwc(posterior.mean),
        "vae/logvar": nhwc(posterior.logvar),
        "vae/image": nhwc(vae.decode(nchw(z)).sample),
    }


def tiny_values():
    tiny = to_torch(weights_by_path(make_tiny(TINY)[1]), diffusers.AutoencoderTiny(**TINY))
    x, z = vae_inputs()
    latents, image = tiny.encode(nchw(x)).latents, tiny.decode(nchw(z)).sample
    return {"tiny/latent": nhwc(latents), "tiny/image": nhwc(image)}


def clip_values(name):
    config = {k: v for k, v in CLIPS[name].items() if k not in CLIP_ONLY_OURS}
    projected = "with_projection" in CLIPS[name]
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    params = weights_by_path(make_clip(CLIPS[name])[1])
    # transformers 5 keeps the prefix in files only
    params = params if projected else params["text_model"]
    clip = to_torch(params, kind(transformers.CLIPTextConfig(**config)))
    out = clip(torch.from_numpy(token_ids()).long(), output_hidden_states=True)
    return {
        f"clip/{name}/penultimate": out.hidden_states[-2].numpy(),
        f"clip/{name}/context": out.last_hidden_state.numpy(),
        f"clip/{name}/pooled": (out.text_embeds if projected else out.pooler_output).numpy(),
    }


def main():
    values = {}
    with torch.no_grad():
        for name in UNETS:
            values |= unet_values(name)
        values |= vae_values()
        values |= tiny_values()
        for name in CLIPS:
            values |= clip_values(name)
    np.savez_compressed(TESTS / "data" / "networks.npz", **values)


if __name__ == "__main__":
    main()
