# SPDX-License-Identifier: MIT
"""Pictures with captions as training data: from the rendered world, or from a folder.

captioned pictures -> `tokenized`: labels become token ids -> `encoded`: pictures become latents.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data import caption_folder
from jaxgen.data.caption_folder import Captioned
from jaxgen.data.source import Source
from jaxgen.train import augment
from jaxgen.types import Array, Params
from jaxgen.weights import tokenizer
from jaxgen.weights.tokenizer import Tokenizer
from jaxgen.world import caption, render, scene

WORLD = "world"
STREAMS = {"train": 0, "test": 1, "prompts": 2, "held_out": 3}  # never the same scene twice
BLOCK = 64  # pictures rendered or encoded at once: always a multiple, so that one program serves
# (params, pictures [B, H, W, 3] in [-1, 1]) -> mean and log-variance [B, h, w, C]
Encode = Callable[[Params, Array], tuple[Array, Array]]


def open_split(data: str, split: str, image_size: int | None, num_scenes: int) -> Captioned:
    """The "train" or "test" split of "world" or of a folder with metadata.jsonl.

    num_scenes: how many scenes of the endless world are the training set; a test split has 1024.
    """
    if data == WORLD:
        if image_size not in (None, scene.SIZE):
            raise ValueError(f"the world is drawn in {scene.SIZE} pixels; leave --image-size out")
        return world(split, num_scenes if split == "train" else 1024)
    return caption_folder.open_split(Path(data), split, image_size=image_size, channels=3)


def world_scenes(
    stream: str, count: int, pairs: np.ndarray = scene.SEEN, two_objects: float = 0.65
) -> scene.Scene:
    """The first `count` scenes of a stream of the world, on the host."""
    if count < 1:
        raise ValueError(f"{count} scenes; use 1 or more")
    key = jax.random.fold_in(jax.random.key(0), STREAMS[stream])
    return jax.device_get(_scenes(key, count, pairs, two_objects))


@functools.cache
def world(split: str, count: int) -> Captioned:
    """`count` scenes; pictures are drawn when they are read."""
    scenes = world_scenes(split, count)

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.resize(indices, _rounded(len(indices)))
        pictures = np.asarray(_pictures(scene.Scene(*(field[rows] for field in scenes))))
        return pictures[: len(indices)], np.asarray(indices, np.int32)

    shape = (scene.SIZE, scene.SIZE, 3)
    return Captioned(Source(count, shape, (), read), caption.captions(scenes))


def tokenized(pictures: Captioned, tokens: Tokenizer) -> Source:
    """The pictures with the ids of their captions [T] as labels."""
    ids = tokenizer.tokenize(tokens, pictures.captions)

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return pictures.source.read(indices)[0], ids[indices]

    return pictures.source._replace(read=read, label_shape=ids.shape[1:])


def encoded(pictures: Source, encode: Encode, params: Params, scaling_factor: float) -> Source:
    """The pictures as posteriors of their latents, in the scale of the sampler.

    Images become float16 [h, w, 2 C]: mean and log-variance of scaling_factor * z. Compiled once
    for each function `encode`, whatever the split and the factor.
    """
    scale = np.float32(scaling_factor), np.float32(2 * np.log(scaling_factor))
    moments = functools.partial(_moments, encode, params, *scale)

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = pictures.read(indices)
        padded = np.resize(images, (_rounded(len(images)), *images.shape[1:]))
        return np.asarray(moments(padded))[: len(images)], labels

    block = jax.ShapeDtypeStruct((BLOCK, *pictures.image_shape), np.uint8)
    shape = jax.eval_shape(moments, block).shape[1:]
    return pictures._replace(
        image_shape=shape, dtype=np.float16, read=read, names=("posterior", "ids")
    )


def scale_of_latents(pictures: Source, encode: Encode, params: Params, count: int = 512) -> float:
    """1 / the standard deviation of latents drawn for the first pictures, to four digits.

    Rombach et al. 2022 (arXiv:2112.10752), appendix G: latents of unit variance.
    """
    raw = encoded(pictures, encode, params, 1.0)
    rows = list(range(min(count, pictures.num_examples)))
    moments = np.concatenate(
        [raw.read(rows[i : i + BLOCK])[0] for i in range(0, len(rows), BLOCK)]
    ).astype(np.float64)
    mean, logvar = np.split(moments, 2, axis=-1)
    variance = np.var(mean) + np.mean(np.exp(logvar))
    return float(f"{variance**-0.5:.4g}")


@functools.partial(jax.jit, static_argnames="encode")
def _moments(encode: Encode, params: Params, scale: Array, shift: Array, images: Array) -> Array:
    """Mean and log-variance of `scale` times the latents of images uint8; shift: 2 log(scale)."""
    mean, logvar = encode(params, augment.to_unit_range(images))
    return jnp.concatenate([mean * scale, logvar + shift], axis=-1).astype(jnp.float16)


_scenes = jax.jit(scene.draw_many, static_argnames="count")


def _rounded(count: int) -> int:
    """The next multiple of BLOCK."""
    return -(-count // BLOCK) * BLOCK


@jax.jit
def _pictures(scenes: scene.Scene) -> Array:
    """Rendered scenes, uint8 [N, SIZE, SIZE, 3]."""
    x = jax.vmap(render.render)(scenes)
    return jnp.rint((x + 1) * 127.5).astype(jnp.uint8)
