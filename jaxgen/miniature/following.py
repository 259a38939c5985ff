# SPDX-License-Identifier: MIT
"""How well a model of the rendered world follows its prompts, read back from its pictures.

prompts of scenes -> pictures by the pipeline -> `world.reader` -> shares that hold each attribute.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxgen.miniature import captioned
from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.world import caption, reader, scene
from jaxgen.world.scene import Scene

# name -> (pairs of shape and colour of the first object, probability of a second one)
GROUPS = {
    "seen, one object": (scene.SEEN, 0.0),
    "seen, two objects": (scene.SEEN, 1.0),
    "held out, one object": (scene.HELD_OUT, 0.0),
    "held out, two objects": (scene.HELD_OUT, 1.0),
}


class Group(NamedTuple):
    """The prompts of one kind, their pictures, and how far these hold to them."""

    scenes: Scene  # [N]
    prompts: list[str]
    pictures: np.ndarray  # uint8 [N, SIZE, SIZE, 3]
    checks: list[dict[str, bool]]  # of each picture, whether it has each attribute of its prompt


def measure(
    pipe: StableDiffusion,
    count: int,
    *,
    num_steps: int = NUM_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    sampler: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Group]:
    """Every group with `count` prompts, drawn and checked; image j of a group has seed + j.

    sampler: None is the model's own. on_batch(done, total) is called with the number of pictures
    after every batch.
    """
    groups: dict[str, Group] = {}
    for i, (name, (pairs, two_objects)) in enumerate(GROUPS.items()):
        scenes = captioned.world_scenes(_stream(pairs), count, pairs, two_objects)
        prompts = caption.captions(scenes)
        batches = []
        for start in range(0, count, batch_size):
            # the last batch is filled up, so that one program serves for all
            rows = np.arange(start, start + batch_size) % count
            batches.append(
                pipe(
                    [prompts[j] for j in rows],
                    num_steps=num_steps,
                    guidance_scale=guidance_scale,
                    sampler=sampler,
                    seed=[int(seed + j) for j in rows],
                )
            )
            if on_batch is not None:
                on_batch(i * count + min(count, start + batch_size), count * len(GROUPS))
        pictures = np.concatenate(batches)[:count]
        checks = [
            reader.check(scene.take(scenes, j), reader.read(picture))
            for j, picture in enumerate(pictures)
        ]
        groups[name] = Group(scenes, prompts, pictures, checks)
    return groups


def table(groups: dict[str, Group]) -> dict[str, dict[str, Any]]:
    """Per group the number of prompts; per attribute the share that holds, and of how many."""
    return {
        name: {
            "prompts": len(group.prompts),
            **{
                attribute: {"share": round(share, 4), "asked": asked}
                for attribute, (share, asked) in reader.report(group.checks).items()
            },
        }
        for name, group in groups.items()
    }


def examples(groups: dict[str, Group], right: bool, count: int) -> tuple[np.ndarray, list[str]]:
    """About `count` pictures that are right, or wrong, evenly from the groups, and their prompts.

    A wrong one's prompt is followed by the attributes that failed.
    """
    pictures, prompts = [], []
    for group in groups.values():
        rows = [j for j, check in enumerate(group.checks) if check["all"] is right]
        for j in rows[: -(-count // len(groups))]:
            pictures.append(group.pictures[j])
            failed = [name for name, holds in group.checks[j].items() if not holds]
            wrong = ", ".join(name for name in failed if name != "all")
            prompts.append(group.prompts[j] + (f" ({wrong})" if wrong else ""))
    return np.asarray(pictures), prompts


def _stream(pairs: np.ndarray) -> str:
    """The stream of the world that scenes of these pairs come from."""
    return "held_out" if pairs is scene.HELD_OUT else "prompts"
