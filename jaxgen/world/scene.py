# SPDX-License-Identifier: MIT
"""Scenes of the world: one or two objects on a background, drawn from a key as small integers.

Eight pairs of shape and colour are held out: no scene of training shows them, though each of their
shapes and colours occurs with seven others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.types import AnyArray, Array, Key

SIZE = 64  # pixels, height and width
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
NEW_SHAPES = ("square ring",)  # drawn and read on request alone: what a model may be taught
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
# of the first object to the second, or of an only object to the middle of the picture
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUNDS = ("white", "gray", "black", "cream")

RADII = ((8.0, 9.5), (12.5, 13.8))  # pixels from the centre to the tips, of each size
GAP = (3.0, 6.0)  # pixels between the circles around two objects
MARGIN = 1.5  # pixels that stay free at the border
WANDER = 6.0  # largest offset of objects from the middle, in pixels
ASIDE = (10.0, 16.0)  # pixels from the middle to the centre of an only object
WORDINGS = 64  # values of each entry of `wording`

# each shape and each colour once, so that all are known from the other scenes
HELD_OUT = np.asarray([(s, (3 * s + 2) % len(COLORS)) for s in range(len(SHAPES))], np.int32)
SEEN = np.asarray(
    [
        (s, c)
        for s in range(len(SHAPES))
        for c in range(len(COLORS))
        if (s, c) not in {(int(a), int(b)) for a, b in HELD_OUT}
    ],
    np.int32,
)


class Scene(NamedTuple):
    """One scene; a batch of them has a leading axis on every field."""

    count: AnyArray  # int32 [], 1 or 2 objects; with 1 the second entry of the next three is unused
    shape: AnyArray  # int32 [2], into SHAPES
    color: AnyArray  # int32 [2], into COLORS
    size: AnyArray  # int32 [2], into SIZES
    relation: AnyArray  # int32 [], into RELATIONS
    background: AnyArray  # int32 [], into BACKGROUNDS
    center: AnyArray  # float32 [2, 2], x to the right and y down, in pixels
    radius: AnyArray  # float32 [2], pixels
    wording: AnyArray  # int32 [6] in [0, WORDINGS), chooses the words of the caption


def draw(key: Key, pairs: np.ndarray = SEEN, two_objects: float = 0.65) -> Scene:
    """A random scene, a pure function of the key: `vmap` over keys gives many.

    pairs: int32 [P, 2], the (shape, colour) pairs of the first object; the second is from SEEN. Two
    objects differ in shape or colour, and `two_objects` is the probability of a second one.
    """
    count_key, first_key, second_key, size_key, relation_key, ground_key, place_key, word_key = (
        jax.random.split(key, 8)
    )
    count = 1 + jax.random.bernoulli(count_key, two_objects).astype(jnp.int32)
    first = jnp.asarray(pairs)[jax.random.randint(first_key, (), 0, len(pairs))]
    second = _another(second_key, first)
    both = jnp.stack([first, second])
    size = jax.random.randint(size_key, (2,), 0, len(SIZES))
    relation = jax.random.randint(relation_key, (), 0, len(RELATIONS))
    radius, center = _place(place_key, count, size, relation)
    return Scene(
        count,
        both[:, 0],
        both[:, 1],
        size,
        relation,
        jax.random.randint(ground_key, (), 0, len(BACKGROUNDS)),
        center,
        radius,
        jax.random.randint(word_key, (6,), 0, WORDINGS),
    )


def draw_many(key: Key, count: int, pairs: np.ndarray = SEEN, two_objects: float = 0.65) -> Scene:
    """A batch of `count` scenes, scene i drawn with fold_in(key, i)."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    return jax.vmap(lambda k: draw(k, pairs, two_objects))(keys)


def take(scenes: Scene, i: int) -> Scene:
    """Scene i of a batch, on the host."""
    return Scene(*(np.asarray(field)[i] for field in scenes))


def _another(key: Key, first: Array) -> Array:
    """A pair of SEEN other than `first`, all equally likely."""
    weights = jnp.any(jnp.asarray(SEEN) != first[None], axis=-1).astype(jnp.float32)
    return jnp.asarray(SEEN)[jax.random.categorical(key, jnp.log(weights))]


def _place(key: Key, count: Array, size: Array, relation: Array) -> tuple[Array, Array]:
    """Radii [2] and centres [2, 2] with which the relation holds and nothing touches."""
    radius_key, gap_key, along_key, across_key = jax.random.split(key, 4)
    low, high = jnp.asarray(RADII).T
    radius = jax.random.uniform(radius_key, (2,), minval=low[size], maxval=high[size])
    gap = jax.random.uniform(gap_key, minval=GAP[0], maxval=GAP[1])
    extent = 2 * jnp.sum(radius) + gap
    slack = jnp.clip((SIZE - 2 * MARGIN - extent) / 2, 0, WANDER)
    position = jax.random.uniform(along_key)  # 0 to 1 of the free pixels
    start = (SIZE - extent) / 2 + slack * (2 * position - 1)
    near, far = start + radius, start + extent - radius  # [2]: either object at either end
    aside = ASIDE[0] + (ASIDE[1] - ASIDE[0]) * position

    first_is_near = relation % 2 == 0  # left of, above
    pair = jnp.where(first_is_near, jnp.stack([near[0], far[1]]), jnp.stack([far[0], near[1]]))
    alone = SIZE / 2 + jnp.where(first_is_near, -aside, aside)
    along = jnp.where(count == 2, pair, alone)
    stray = jax.random.uniform(across_key, (2,), minval=-WANDER, maxval=WANDER)
    across = SIZE / 2 + stray
    horizontal = relation < 2
    x, y = jnp.where(horizontal, along, across), jnp.where(horizontal, across, along)
    return radius, jnp.stack([x, y], axis=-1)
