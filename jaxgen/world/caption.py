# SPDX-License-Identifier: MIT
"""What is said of a scene, in varied words: "a large red star above a small blue ring on white"."""

import numpy as np

from jaxgen.world.scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Scene, take

BEGINNINGS = ("", "", "", "a picture of ", "a drawing of ")
SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
}
# where the first and the second object are
PLACE_WORDS = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
GROUND_WORDS = ("on {}", "on {}", "on a {} background")
# of 64 values of a wording: how many leave something out, or say two places instead of a relation
SIZE_UNSAID, GROUND_UNSAID, PLACE_UNSAID, PLACES_SAID = 10, 16, 24, 24


def caption(scene: Scene) -> str:
    """The caption of one scene on the host, a function of the scene and its wording."""
    wording = [int(w) for w in scene.wording]
    text = BEGINNINGS[wording[0] % len(BEGINNINGS)] + _object(scene, 0, wording[1])
    relation = RELATIONS[int(scene.relation)]
    here, there = PLACE_WORDS[relation]
    if int(scene.count) == 1:
        text += f" {here}" if says_place(scene) else ""
    elif wording[2] < PLACES_SAID:
        text += f" {here} and {_object(scene, 1, wording[3])} {there}"
    else:
        words = RELATION_WORDS[relation]
        text += f" {words[wording[2] % len(words)]} {_object(scene, 1, wording[3])}"
    if wording[4] >= GROUND_UNSAID:
        ground = GROUND_WORDS[wording[5] % len(GROUND_WORDS)]
        text += " " + ground.format(BACKGROUNDS[int(scene.background)])
    return text


def captions(scenes: Scene) -> list[str]:
    """The captions of a batch of scenes."""
    host = Scene(*(np.asarray(field) for field in scenes))
    return [caption(take(host, i)) for i in range(len(host.count))]


def says_size(scene: Scene, i: int) -> bool:
    """Whether the caption says the size of object i."""
    return int(scene.wording[1 if i == 0 else 3]) >= SIZE_UNSAID


def says_place(scene: Scene) -> bool:
    """Whether the caption says where the objects are; that of two always does."""
    return int(scene.count) == 2 or int(scene.wording[2]) >= PLACE_UNSAID


def says_background(scene: Scene) -> bool:
    """Whether the caption says the background."""
    return int(scene.wording[4]) >= GROUND_UNSAID


def plain(scene: Scene) -> Scene:
    """The scene with a wording that says everything in the first words of each list."""
    return scene._replace(wording=np.full_like(np.asarray(scene.wording), 60))


def _object(scene: Scene, i: int, wording: int) -> str:
    words = [COLORS[int(scene.color[i])], SHAPES[int(scene.shape[i])]]
    if wording >= SIZE_UNSAID:
        sizes = SIZE_WORDS[SIZES[int(scene.size[i])]]
        words.insert(0, sizes[wording % len(sizes)])
    return f"{'an' if words[0][0] == 'o' else 'a'} {' '.join(words)}"
