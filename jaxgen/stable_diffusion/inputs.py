# SPDX-License-Identifier: MIT
"""All that one batch of pictures is generated from, as arrays: what `generate` takes."""

from typing import Any, NamedTuple

from jaxgen.adapters.beside import Beside
from jaxgen.diffusion.table import Table
from jaxgen.stable_diffusion.control import Control
from jaxgen.types import AnyArray


class Inputs(NamedTuple):
    """Holds all data of a batch of B images; h, w is the latents' size, C their channels.

    Each image has a set of S texts, of which G guide it at a time: 2 where a negative and a
    positive text do, 1 where nothing is guided, more where AND joins several positive ones.
    Fields that may be None change the program by their presence; all else is data.
    """

    table: Table  # the sampler, its steps and spacing, and where an image-to-image run begins
    noise: AnyArray  # [B, h, w, C] unit noise
    clean: AnyArray  # [B, h, w, C] latent of the given image; not used where from_image is False
    from_image: AnyArray  # bool []: begin with the noised `clean`, not with pure noise
    seeds: AnyArray  # uint32 [B], for the noise inside stochastic samplers
    context: AnyArray  # [B, S, T, E] encoded texts
    guidance_scale: AnyArray  # [N, B] for the N rows of the table; or [B], for all rows
    guidance_rescale: AnyArray  # the same
    pooled: AnyArray | None = None  # [B, S, P] XL: pooled texts
    time_ids: AnyArray | None = None  # XL: sizes in pixels, [B, 6]; of its refiner [B, S, 5]
    mask: AnyArray | None = None  # [B, h, w, 1] inpainting by blending: 1 where made anew
    extra: AnyArray | None = None  # [B, h, w, C + 1] inpainting UNets: mask and masked image
    # [rows, B, h, w, C] noise of every step that replaces what the seeds draw; the comparisons with
    # diffusers use it, whose noise no seed of JAX gives
    step_noise: AnyArray | None = None
    controls: tuple[Control, ...] = ()  # one for each ControlNet
    # int32 [N, B, G], which texts hold at each row; None: S = G, and all do, in their order
    text_index: AnyArray | None = None
    text_weights: AnyArray | None = None  # [B, G - 1] of the positive texts; None: G is 1 or 2
    guidance_parallel: AnyArray | None = None  # [B], see `guidance.Projection`
    guidance_limit: AnyArray | None = None  # [B]
    guidance_momentum: AnyArray | None = None  # [B]
    # [N, B]; the last of the G texts is then the positive one again, see `guidance.Guidance`
    pag_scale: AnyArray | None = None
    pag_layers: Any = None  # where it does without self-attention, see `perturbed.with_perturbed`
    adapters: Beside | None = None  # low-rank paths of the UNet, chosen by each image
    # bool [N], the rows that run the whole UNet; the others take its deep features again
    full: AnyArray | None = None
