# SPDX-License-Identifier: MIT
"""Captions of scenes in varied words: "a large red star above a small blue ring on white".

The six entries of `scene.wording`, each from 0 to 63, choose the words and what is left out:
0 the beginning, 1 the first object's size, 2 the place or relation, 3 the second object's size,
4 whether the background is named, 5 how.
"""

from collections.abc import Sequence

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
# the places of the first and of the second object
PLACE_WORDS = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
GROUND_WORDS = ("on {}", "on {}", "on a {} background")
# an entry of the wording below these has the caption
SIZE_UNSAID = 10  # leave out the size of the object
GROUND_UNSAID = 16  # leave out the background
PLACE_UNSAID = 24  # leave out the place of an only object
PLACES_SAID = 24  # say "A on the left and B on the right", and not "A left of B"


def caption(scene: Scene, shapes: Sequence[str] = SHAPES) -> str:
    """The caption of one scene, whose arrays are on the host; shapes: names by `scene.shape`."""
    wording = [int(w) for w in scene.wording]
    text = BEGINNINGS[wording[0] % len(BEGINNINGS)] + _object(scene, 0, wording[1], shapes)
    relation = RELATIONS[int(scene.relation)]
    first_place, second_place = PLACE_WORDS[relation]
    second = _object(scene, 1, wording[3], shapes)
    if int(scene.count) == 1:
        text += f" {first_place}" if says_place(scene) else ""
    elif wording[2] < PLACES_SAID:
        text += f" {first_place} and {second} {second_place}"
    else:
        words = RELATION_WORDS[relation]
        text += f" {words[wording[2] % len(words)]} {second}"
    if wording[4] >= GROUND_UNSAID:
        ground = GROUND_WORDS[wording[5] % len(GROUND_WORDS)]
        text += " " + ground.format(BACKGROUNDS[int(scene.background)])
    return text


def captions(scenes: Scene, shapes: Sequence[str] = SHAPES) -> list[str]:
    """The captions of a batch of scenes."""
    host = Scene(*(np.asarray(field) for field in scenes))
    return [caption(take(host, i), shapes) for i in range(len(host.count))]


def says_size(scene: Scene, i: int) -> bool:
    """Whether the caption tells the size of object i."""
    return int(scene.wording[1 if i == 0 else 3]) >= SIZE_UNSAID


def says_place(scene: Scene) -> bool:
    """Whether the caption tells where the objects are; with two objects it always does."""
    return int(scene.count) == 2 or int(scene.wording[2]) >= PLACE_UNSAID


def says_background(scene: Scene) -> bool:
    """Whether the caption names the background."""
    return int(scene.wording[4]) >= GROUND_UNSAID


def plain(scene: Scene) -> Scene:
    """The scene with a caption that leaves out nothing, in the first words of each list."""
    return scene._replace(wording=np.full_like(np.asarray(scene.wording), 60))


def _object(scene: Scene, i: int, wording: int, shapes: Sequence[str]) -> str:
    """The words for object i: "a large red star"."""
    words = [COLORS[int(scene.color[i])], shapes[int(scene.shape[i])]]
    if wording >= SIZE_UNSAID:
        sizes = SIZE_WORDS[SIZES[int(scene.size[i])]]
        words.insert(0, sizes[wording % len(sizes)])
    return f"{'an' if words[0][0] == 'o' else 'a'} {' '.join(words)}"
