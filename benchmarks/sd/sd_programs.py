# SPDX-License-Identifier: MIT
"""Inputs for the programs of a Stable Diffusion pipeline, by size, to time or compile them."""

from typing import Any, NamedTuple

import numpy as np

from jaxgen.diffusion import config as sampler_config
from jaxgen.diffusion import schedule
from jaxgen.stable_diffusion import decoding, text_encoding
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.inputs import Inputs
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.texts.prompts import Chunks

SCHEDULER = {
    "_class_name": "DDIMScheduler", **schedule.STABLE_DIFFUSION_BETAS, "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
TOKENS = 77
GUIDANCE = 7.5


class Size(NamedTuple):
    """The size of one call."""

    batch_size: int
    resolution: int  # height and width in pixels
    num_steps: int


def check(networks: Networks, size: Size) -> None:
    """Raises ValueError for a size that these networks cannot take."""
    pixels = networks.vae.factor * 2 ** (len(networks.unet.block_out_channels) - 1)
    if size.resolution < pixels or size.resolution % pixels:
        raise ValueError(f"resolution {size.resolution}; use a multiple of {pixels} pixels")
    if size.batch_size < 1 or size.num_steps < 1:
        raise ValueError(f"batch of {size.batch_size}, {size.num_steps} steps; use 1 or more")


def latent_shape(networks: Networks, size: Size) -> tuple[int, int, int, int]:
    side = size.resolution // networks.vae.factor
    return (size.batch_size, side, side, networks.vae.latent_channels)


def decoder_cut(networks: Networks, size: Size, groups: int = 1) -> decoding.Cut:
    return decoding.cut_of(latent_shape(networks, size), networks.vae.factor, groups)


def chunks(networks: Networks, size: Size, texts: int = 1) -> dict[str, Chunks]:
    """The token ids by encoder of `texts` random texts for each image."""
    rng, shape = np.random.default_rng(0), (texts * size.batch_size, 1, TOKENS)
    chunks_by_encoder = {}
    for name, encoder in networks.encoders.items():
        ids = rng.integers(0, encoder.vocab_size - 2, shape, dtype=np.int32)
        ids[..., 0], ids[..., -1] = encoder.vocab_size - 2, encoder.eos_token_id
        chunks_by_encoder[name] = Chunks(ids, np.ones(shape, np.float32))
    return chunks_by_encoder


def inputs(networks: Networks, size: Size, text: text_encoding.Text) -> Inputs:
    """The inputs of the UNet's programs, for DDIM with guidance.

    text: context [B, 2, T, E] and pooled [B, 2, P], the negative one before the positive one.
    """
    b, shape = size.batch_size, latent_shape(networks, size)
    table = sampler_config.from_config(SCHEDULER)(size.num_steps)
    sizes = None
    if text.pooled is not None:
        pixels = (size.resolution, size.resolution)
        sizes = arguments.time_ids(pixels, (0, 0), pixels, b)
    return Inputs(
        table=table._replace(**{n: _as_float32(x) for n, x in table._asdict().items()}),
        noise=np.random.default_rng(0).normal(size=shape).astype(np.float32),
        clean=np.zeros(shape, np.float32),
        from_image=np.asarray(False),
        seeds=np.arange(b, dtype=np.uint32),
        context=text.context,
        guidance_scale=np.full(b, GUIDANCE, np.float32),
        guidance_rescale=np.zeros(b, np.float32),
        pooled=text.pooled,
        time_ids=sizes,
    )


def _as_float32(column: Any) -> np.ndarray:
    column = np.asarray(column)
    whole = np.issubdtype(column.dtype, np.integer)
    return column.astype(np.int32 if whole else np.float32)
