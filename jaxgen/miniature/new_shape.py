# SPDX-License-Identifier: MIT
"""A shape that no scene of the world shows, to be taught to a model that knows the others.

It is the square ring, a square with a square hole: a model of the world knows both words, and has
never seen them side by side.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

SHAPES = (*scene.SHAPES, *scene.NEW_SHAPES)
# the new shape in every colour
PAIRS = np.asarray([(len(scene.SHAPES), color) for color in range(len(scene.COLORS))], np.int32)

# name -> probability of a second object, which is of the world
GROUPS = {"new shape, one object": 0.0, "new shape, two objects": 1.0}


def scenes(stream: str, count: int, two_objects: float) -> Scene:
    """Scenes whose first object has the new shape."""
    return captioned.world_scenes(stream, count, PAIRS, two_objects)


def write(folder: Path, count: int) -> None:
    """Writes `count` captioned pictures: half with the new shape, half of the world as it was."""
    new, old = scenes("train", count // 2, 0.3), captioned.world_scenes("train", count - count // 2)
    both = Scene(*(np.concatenate(pair) for pair in zip(new, old, strict=True)))
    folder.mkdir(parents=True)
    lines = []
    pictures, texts = np.asarray(pictures_of(both)), caption.captions(both, SHAPES)
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        Image.fromarray(picture).save(folder / f"{i:05}.png")
        lines.append(json.dumps({"file_name": f"{i:05}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def measure(
    pipe: StableDiffusion, count: int, batch_size: int = 64, groups: Sequence[str] = tuple(GROUPS)
) -> dict[str, Any]:
    """The share of prompts for the new shape that hold each attribute, for one and two objects.

    As `following.table`; picture j of a group has seed j.
    """
    table: dict[str, Any] = {}
    for name in groups:
        asked = scenes("prompts", count, GROUPS[name])
        prompts = caption.captions(asked, SHAPES)
        checks = []
        for start in range(0, count, batch_size):
            rows = [j % count for j in range(start, start + batch_size)]
            pictures = pipe(
                [prompts[j] for j in rows], num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE,
                seed=rows,
            )  # fmt: skip
            checks += [
                reader.check(scene.take(asked, j), reader.read(picture, SHAPES))
                for j, picture in zip(rows, pictures, strict=True)
            ]
        table[name] = {"prompts": count}
        for attribute, (share, number) in reader.report(checks[:count]).items():
            table[name][attribute] = {"share": round(share, 4), "asked": number}
    return table


@jax.jit
def pictures_of(scenes: Scene) -> Array:
    """Rendered scenes, uint8 [N, SIZE, SIZE, 3]."""
    return jnp.rint((jax.vmap(render.render)(scenes) + 1) * 127.5).astype(jnp.uint8)
