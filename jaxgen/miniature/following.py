# SPDX-License-Identifier: MIT
"""How well a model of the rendered world follows its prompts, read back from its pictures.

prompts of scenes -> pictures by the pipeline -> `world.reader` -> shares that hold what was asked.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxgen.miniature import captioned
from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.world import caption, reader, scene
from jaxgen.world.scene import Scene

# what is asked for: (pairs of shape and colour of the first object, probability of a second one)
GROUPS = {
    "seen, one object": (scene.SEEN, 0.0),
    "seen, two objects": (scene.SEEN, 1.0),
    "held out, one object": (scene.HELD_OUT, 0.0),
    "held out, two objects": (scene.HELD_OUT, 1.0),
}


class Settings(NamedTuple):
    """How pictures are made."""

    num_steps: int = NUM_STEPS
    guidance_scale: float = GUIDANCE_SCALE
    sampler: str | None = None  # the model's own
    seed: int = 0
    batch_size: int = 64


class Group(NamedTuple):
    """The prompts of one kind and what came of them."""

    scenes: Scene  # [N]
    prompts: list[str]
    pictures: np.ndarray  # uint8 [N, SIZE, SIZE, 3]
    checks: list[dict[str, bool]]  # of each picture, what of the prompt holds


def measure(
    pipe: StableDiffusion,
    count: int,
    settings: Settings,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Group]:
    """Every group with `count` prompts, made and checked; image j of a group has seed + j.

    on_batch(done, total) is called with the number of pictures after every batch.
    """
    total, found = count * len(GROUPS), {}
    for i, (name, (pairs, two_objects)) in enumerate(GROUPS.items()):
        scenes = captioned.world_scenes(_stream(pairs), count, pairs, two_objects)
        prompts = caption.captions(scenes)
        made = []
        for start in range(0, count, settings.batch_size):
            made.append(_pictures(pipe, prompts, start, settings))
            if on_batch is not None:
                on_batch(i * count + min(count, start + settings.batch_size), total)
        pictures = np.concatenate(made)[:count]
        checks = [
            reader.check(scene.take(scenes, j), reader.read(picture))
            for j, picture in enumerate(pictures)
        ]
        found[name] = Group(scenes, prompts, pictures, checks)
    return found


def table(groups: dict[str, Group]) -> dict[str, dict[str, Any]]:
    """Per group the number of prompts, and per attribute the share that holds and of how many."""
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


def chosen(groups: dict[str, Group], right: bool, count: int) -> tuple[np.ndarray, list[str]]:
    """Pictures and prompts that hold all that was asked, or fail: evenly from the groups."""
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
    return "held_out" if pairs is scene.HELD_OUT else "prompts"


def _pictures(
    pipe: StableDiffusion, prompts: list[str], start: int, settings: Settings
) -> np.ndarray:
    """One batch, the last filled up so that one program does for all."""
    rows = np.arange(start, start + settings.batch_size) % len(prompts)
    return pipe(
        [prompts[j] for j in rows],
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        sampler=settings.sampler,
        seed=[int(settings.seed + j) for j in rows],
    )
