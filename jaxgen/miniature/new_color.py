# SPDX-License-Identifier: MIT
"""A colour that no object of the world has, to be taught to a model that knows the others.

Black is the colour of some backgrounds, so a model of the world knows the word, but has never drawn
or named a black object.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxgen.miniature import captioned
from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.types import Array
from jaxgen.world import caption, reader, render, scene
from jaxgen.world.scene import Scene

NAME = "black"
GROUND = scene.BACKGROUNDS.index(NAME)
COLORS = (*scene.COLORS, NAME)
PALETTE = np.concatenate([render.COLORS, render.BACKGROUNDS[GROUND : GROUND + 1]])
# every shape in the new colour
PAIRS = np.asarray([(shape, len(scene.COLORS)) for shape in range(len(scene.SHAPES))], np.int32)


def scenes(stream: str, count: int, two_objects: float) -> Scene:
    """Scenes whose first object is black, on the three backgrounds that are not."""
    drawn = captioned.world_scenes(stream, count, PAIRS, two_objects)
    others = np.delete(np.arange(len(scene.BACKGROUNDS)), GROUND).astype(np.int32)
    ground = np.asarray(drawn.background)
    ground = np.where(ground == GROUND, others[np.arange(count) % len(others)], ground)
    return drawn._replace(background=ground)


def write(folder: Path, count: int) -> None:
    """Writes `count` captioned pictures: half with the new colour, half of the world as it was."""
    new, old = scenes("train", count // 2, 0.3), captioned.world_scenes("train", count - count // 2)
    both = Scene(*(np.concatenate([a, b]) for a, b in zip(new, old, strict=True)))
    folder.mkdir(parents=True)
    lines = []
    for i, (picture, text) in enumerate(
        zip(np.asarray(_pictures(both)), caption.captions(both, COLORS), strict=True)
    ):
        Image.fromarray(picture).save(folder / f"{i:05}.png")
        lines.append(json.dumps({"file_name": f"{i:05}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def measure(pipe: StableDiffusion, count: int, two_objects: float) -> dict[str, float]:
    """The share of `count` prompts of black objects that hold each attribute."""
    asked = scenes("prompts", count, two_objects)
    pictures = pipe(
        caption.captions(asked, COLORS), num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE
    )
    checks = [
        reader.check(scene.take(asked, i), reader.read(picture, PALETTE))
        for i, picture in enumerate(pictures)
    ]
    return {name: round(share, 4) for name, (share, _) in reader.report(checks).items()}


@jax.jit
def _pictures(scenes: Scene) -> Array:
    pictures = jax.vmap(lambda one: render.render(one, PALETTE))(scenes)
    return jnp.rint((pictures + 1) * 127.5).astype(jnp.uint8)
