# SPDX-License-Identifier: MIT
"""Turns the arguments of a call into arrays, and finds everything that callers can get wrong.

All of it is NumPy on the host, so that a bad request fails before any long work.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgen import fields
from jaxgen.diffusion.table import Table
from jaxgen.nn.stable_diffusion import perturbed
from jaxgen.stable_diffusion import text_encoding
from jaxgen.stable_diffusion.call import control_arguments, image_arguments, sampler_arguments
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.request import (
    BatchRequest,
    Request,
    completed,
    each,
    is_given,
    is_list,
    is_number,
    is_whole,
    with_plain_numbers,
)
from jaxgen.stable_diffusion.texts import phases

LISTS = (
    "prompt", "negative_prompt", "guidance_scale", "guidance_rescale", "guidance_parallel",
    "guidance_limit", "guidance_momentum", "pag_scale", "seed",
)  # fmt: skip
OUTPUTS = ("image", "latent")
# aesthetic scores that XL's refiner takes instead of a target size, as diffusers has them
NEGATIVE_SCORE, POSITIVE_SCORE = 2.5, 6.0


def batch(request: Request, networks: Networks, scheduler: Mapping[str, Any]) -> BatchRequest:
    """Checks a request and brings it into arrays with one entry for each image.

    scheduler: the model's scheduler_config.json. Raises one ValueError that says what is wrong.
    """
    request = completed(with_plain_numbers(request))
    _check_single_values(request, networks)
    image, mask = image_arguments.image(request.image), image_arguments.mask(request.mask)
    latents, clean = (
        image_arguments.latents(getattr(request, name), networks.vae, name)
        for name in ("latents", "image_latents")
    )
    image_arguments.check_pair(image, clean, mask, networks)
    if clean is not None and image is not None:
        raise ValueError("image and image_latents are both given; leave one of them out")
    if clean is not None and latents is not None and clean.shape[1:] != latents.shape[1:]:
        raise ValueError(f"latents have shape {latents.shape}, image_latents {clean.shape}")
    has_image = image is not None or clean is not None
    if is_given(request, "strength") and not has_image:
        raise ValueError(
            f"strength is {request.strength}, the share of an image that is made anew, and no "
            "image is given; give one, or leave strength out"
        )
    hints = control_arguments.images(request, len(networks.controlnets))
    size = image_arguments.size(
        request, networks, image, clean if latents is None else latents, hints[0] if hints else None
    )
    _check_hand_over(request, latents)
    table, num_steps = sampler_arguments.table(request, networks, scheduler, has_image)
    controls = control_arguments.requests(request, networks.controlnets, hints, table)
    columns = sampler_arguments.guidance_rows(request, table)
    b = _batch_size(request, columns, image, mask, latents, clean, *hints)
    guidance = sampler_arguments.guidance(request, columns, table, b)
    needs_pair = bool((guidance["guidance_scale"] != 1).any())
    twice = guidance["pag_scale"] is not None
    depths = networks.unet.attention_depths()
    if is_given(request, "pag_layers") and not twice:
        perturbed.layers(request.pag_layers, depths)  # what is wrong with them comes first
        raise ValueError("pag_layers need a pag_scale; leave them out, or give that too")
    layers = perturbed.layers(request.pag_layers, depths) if twice else None
    texts = _phases(request, networks, table, num_steps, needs_pair, twice, b)
    return BatchRequest(
        phases=texts,
        prompt_embeds=_repeated(request.prompt_embeds, b),
        negative_prompt_embeds=_repeated(request.negative_prompt_embeds, b),
        clip_skip=request.clip_skip,
        weighting=request.weighting,
        guided=bool(texts.negatives),
        **guidance,
        pag_layers=layers,
        seeds=_seeds(request.seed, b),
        size=size,
        time_ids=_time_ids(request, networks, size, texts, b),
        table=table,
        image=_repeated(image, b),
        mask=_repeated(mask, b),
        latents=_repeated(latents, b),
        clean=_repeated(clean, b),
        from_image=has_image and (mask is None or request.strength < 1),
        full=sampler_arguments.full_rows(request, table),
        controls=[
            own._replace(
                image=_repeated(own.image, b),
                # without guidance no row of an image is the negative text's
                of_negative=own.of_negative if texts.negatives else np.ones((), np.float32),
            )
            for own in controls
        ],
    )


def time_ids(
    original_size: Sequence[int], crop: Sequence[int], target_size: Sequence[int], batch_size: int
) -> np.ndarray:
    """Lists the sizes that XL takes as an input, in pixels, float32 [B, 6]: original height and
    width, top and left of the crop, target height and width.

    Podell et al. 2023 (arXiv:2307.01952) section 2.2.
    """
    pairs = (original_size, crop, target_size)
    if not all(is_list(pair) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs):
        raise ValueError(
            "original_size, crop and target_size are two numbers each: (height, width), (top, "
            f"left), (height, width); got {', '.join(map(fields.shown, pairs))}"
        )
    # float32, not the networks' type: bfloat16 would make 1024 of 1023
    return np.tile(np.asarray(pairs, np.float32).ravel(), (batch_size, 1))


def _check_single_values(request: Request, networks: Networks) -> None:
    """Raises ValueError for a wrong value among those that hold for all images."""
    if not isinstance(request.output, str) or request.output not in OUTPUTS:
        raise ValueError(
            f"output is {fields.shown(request.output)}; use one of {', '.join(OUTPUTS)}"
        )
    if not is_number(request.strength) or not 0 <= request.strength <= 1:
        raise ValueError(
            f"strength is {fields.shown(request.strength)}; it must lie between 0 and 1"
        )
    if request.eta is not None and (not is_number(request.eta) or request.eta < 0):
        raise ValueError(f"eta is {fields.shown(request.eta)}; it must be a number of at least 0")
    if not isinstance(request.weighting, bool):
        raise ValueError(f"weighting is {fields.shown(request.weighting)}; use True or False")
    text_encoding.check_clip_skip(networks, request.clip_skip)
    if request.clip_skip and request.prompt_embeds is not None:
        raise ValueError(
            f"clip_skip is {request.clip_skip}, of a prompt, and prompt_embeds are given in its "
            "place; leave clip_skip out, and give it to `embed`"
        )
    if request.prompt is None and request.prompt_embeds is None:
        raise ValueError("give a prompt (a string or a list of strings), or prompt_embeds")
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        text_encoding.check_embeds(name, getattr(request, name), networks)
    for name in ("prompt", "negative_prompt"):
        if getattr(request, name) is not None and getattr(request, f"{name}_embeds") is not None:
            raise ValueError(f"{name} and {name}_embeds are both given; leave one of them out")


def _check_hand_over(request: Request, latents: np.ndarray | None) -> None:
    """Raises ValueError where one model cannot go on from another's latents, or hand over its own.

    A start or an end of None is a whole run's.
    """
    start, end = request.denoising_start, request.denoising_end
    for name, share in (("denoising_start", start), ("denoising_end", end)):
        if share is not None and (not is_number(share) or not 0 < share < 1):
            raise ValueError(f"{name} is {fields.shown(share)}; it must lie between 0 and 1")
    has_image = request.image is not None or request.image_latents is not None
    if start is not None and (latents is None or has_image):
        raise ValueError(
            "denoising_start goes on from the latents that another call left with denoising_end; "
            "give them as latents, and no image"
        )
    if end is not None and request.output != "latent":
        raise ValueError("denoising_end leaves noisy latents; use output='latent'")


def _batch_size(
    request: Request, columns: Mapping[str, np.ndarray], *arrays: np.ndarray | None
) -> int:
    """Counts the images: the common length of all lists; single values serve all images.

    columns: what is given for each row of the table, [N, 1] or [N, B].
    """
    lengths = {name: rows.shape[1] for name, rows in columns.items()}
    for name in LISTS:
        value = getattr(request, name)
        if name not in lengths and is_list(value):
            lengths[name] = len(value)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        text = getattr(request, name)
        if text is not None:
            lengths[name] = len(text.context)
    named = ("image", "mask", "latents", "image_latents")
    named += ("control_image",) * (len(arrays) - len(named))
    for name, array in zip(named, arrays, strict=True):
        if array is not None:
            lengths[name] = len(array)
    empty = [name for name, length in lengths.items() if length == 0]
    if empty:
        raise ValueError(f"{empty[0]} is an empty list; give at least one entry")
    b = max(lengths.values(), default=1)
    wrong = [f"{name} has {length}" for name, length in lengths.items() if length not in (1, b)]
    if wrong:
        raise ValueError(
            f"the batch has {b} images, but {', '.join(wrong)}; give one for each image or one "
            "for all"
        )
    return b


def _time_ids(
    request: Request, networks: Networks, size: tuple[int, int], texts: phases.Phases, b: int
) -> np.ndarray | None:
    """Lists XL's sizes [B, 6]; a refiner's, with scores for negative and other texts, [B, S, 5]."""
    original, target = request.original_size, request.target_size
    own = [size if pair is None else pair for pair in (original, target)]
    sizes = time_ids(own[0], request.crop, own[1], b)
    if networks.is_xl and networks.num_sizes == 6:
        return sizes
    if not networks.is_xl and (original is not None or target is not None or any(request.crop)):
        raise ValueError(
            "original_size, crop and target_size are inputs of Stable Diffusion XL, and this model "
            "has none of them; leave them out"
        )
    if not networks.is_xl:
        return None
    if target is not None:
        raise ValueError(
            "target_size is no input of XL's refiner, which takes aesthetic scores in its place; "
            "leave it out"
        )
    counts = [len(texts.negatives), len(texts.positives)]
    scores = np.repeat(np.asarray([NEGATIVE_SCORE, POSITIVE_SCORE], np.float32), counts)
    sized = np.repeat(sizes[:, None, :4], len(scores), axis=1)
    return np.concatenate([sized, np.tile(scores[None, :, None], (b, 1, 1))], axis=2)


def _texts(name: str, value: Any, b: int) -> list:
    """Gives each image its text; a negative one may be None."""
    texts = each(value, b)
    for text in texts:
        if not isinstance(text, str) and not (text is None and name == "negative_prompt"):
            raise ValueError(f"{name} holds {fields.shown(text)}; expected a string")
    return texts


def _phases(
    request: Request,
    networks: Networks,
    table: Table,
    num_steps: int,
    needs_pair: bool,
    twice: bool,
    b: int,
) -> phases.Phases:
    """Reads the texts of all images; needs_pair where guidance needs negative ones, twice where
    it needs the positive ones again."""
    # UNets that were distilled to take their guidance scale as an input need none
    distilled = networks.unet.time_cond_proj_dim is not None
    texts = phases.phases(
        None if request.prompt is None else _texts("prompt", request.prompt, b),
        _texts("negative_prompt", request.negative_prompt, b),
        needs_pair and not distilled,
        request.weighting,
        table,
        num_steps,
        twice,
    )
    if distilled and twice:
        raise ValueError("pag_scale is no input of this model, which does without texts in pairs")
    if distilled and texts.weights is not None:
        raise ValueError("AND needs guidance by negative texts, which this model does without")
    return texts


def _seeds(value: Any, b: int) -> np.ndarray:
    """Gives each image its seed, uint32 [B]; a single one counts up."""
    seeds = each(value, b)
    if not is_list(value) and is_whole(seeds[0]):
        seeds = [seeds[0] + j for j in range(b)]
    for seed in seeds:
        if not is_whole(seed) or not 0 <= seed < 2**32:
            raise ValueError(
                f"seed is {fields.shown(seed)}; it must be a whole number from 0 to 2**32 - 1"
            )
    return np.asarray(seeds, np.uint32)


def _repeated(arrays: Any, b: int) -> Any:
    """Repeats arrays of one row b times; None and arrays of b rows stay."""
    rows = {len(x) for x in jax.tree.leaves(arrays)}
    return arrays if rows <= {b} else jax.tree.map(lambda x: np.repeat(x, b, axis=0), arrays)
