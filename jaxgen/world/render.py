# SPDX-License-Identifier: MIT
"""The renderer of scenes: anti-aliased pictures from signed distances, on any device.

An object covers min(max(1/2 - d, 0), 1) of a pixel, d being the distance in pixels from the pixel's
centre to the outline, negative inside.
"""

import math

import jax.numpy as jnp
import numpy as np

from jaxgen.types import Array
from jaxgen.world.scene import SIZE, Scene

# sRGB, in the order of scene.COLORS and scene.BACKGROUNDS
COLORS = np.asarray(
    [
        (214, 40, 40), (244, 128, 28), (250, 208, 44), (46, 158, 76),
        (40, 190, 204), (44, 90, 214), (124, 58, 172), (244, 126, 178),
    ],
    np.uint8,
)  # fmt: skip
BACKGROUNDS = np.asarray(
    [(250, 250, 248), (168, 172, 178), (26, 26, 32), (244, 226, 190)], np.uint8
)


def render(scene: Scene) -> Array:
    """The picture of one scene: float32 [SIZE, SIZE, 3] in [-1, 1]. `vmap` it for many."""
    middle = jnp.arange(SIZE) + 0.5
    x, y = jnp.meshgrid(middle, middle)  # [SIZE, SIZE], y down
    picture = jnp.asarray(BACKGROUNDS, jnp.float32)[scene.background]
    picture = jnp.broadcast_to(picture[None, None], (SIZE, SIZE, 3))
    for i in range(2):
        distance = signed_distances(
            x - scene.center[i, 0], y - scene.center[i, 1], scene.radius[i]
        )[scene.shape[i]]
        cover = jnp.clip(0.5 - distance, 0, 1) * (i < scene.count)
        color = jnp.asarray(COLORS, jnp.float32)[scene.color[i]]
        picture = picture + cover[..., None] * (color[None, None] - picture)
    return picture * (2 / 255) - 1


def signed_distances(x: Array, y: Array, radius: Array) -> Array:
    """The distances to the outline of every shape, SHAPES and then NEW_SHAPES: [shapes, ...].

    x to the right and y down from the centre, in pixels; `radius` reaches to the tips. Near corners
    some are bounds of the distance and not the distance.
    """
    across = jnp.hypot(x, y)
    return jnp.stack(
        [
            across - 0.9 * radius,
            _box(x, y, 0.8 * radius, 0.8 * radius),
            _triangle(x, y, radius),
            _star(x, y, radius),
            _heart(x, y, radius),
            jnp.abs(across - 0.72 * radius) - 0.24 * radius,
            jnp.minimum(_box(x, y, radius, 0.32 * radius), _box(x, y, 0.32 * radius, radius)),
            _rhombus(x, y, 0.68 * radius, radius),
            jnp.maximum(
                _box(x, y, 0.8 * radius, 0.8 * radius), -_box(x, y, 0.4 * radius, 0.4 * radius)
            ),
        ]
    )


def _box(x: Array, y: Array, width: Array, height: Array) -> Array:
    return jnp.maximum(jnp.abs(x) - width, jnp.abs(y) - height)


def _rhombus(x: Array, y: Array, width: Array, height: Array) -> Array:
    area = jnp.abs(x) * height + jnp.abs(y) * width - width * height
    return area / jnp.hypot(width, height)


def _triangle(x: Array, y: Array, radius: Array) -> Array:
    """An equilateral triangle, one tip up, its centre lowered so that it stands in the middle."""
    y = y - 0.2 * radius
    side = jnp.abs(x) * math.cos(math.pi / 6) - y * math.sin(math.pi / 6)
    return jnp.maximum(y, side) - 0.55 * radius


def _star(x: Array, y: Array, radius: Array) -> Array:
    """A star of five tips, one up; the inner corners are at 0.45 of the radius."""
    sector = 2 * math.pi / 5
    angle = jnp.arctan2(x, -y)
    angle = jnp.abs(angle - sector * jnp.round(angle / sector))  # from the nearest tip, [0, pi/5]
    across = jnp.hypot(x, y)
    u, v = across * jnp.cos(angle), across * jnp.sin(angle)
    inner_u, inner_v = 0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2)
    length = math.hypot(1 - inner_u, inner_v)
    return ((u - radius) * inner_v + v * (1 - inner_u)) / length  # from the edge tip to corner


def _heart(x: Array, y: Array, radius: Array) -> Array:
    """A heart: a square standing on its tip, with half circles on its two upper sides."""
    half = 0.62 * radius  # from the square's centre to its corners
    y = y - (0.95 * radius - half)  # its lower tip at 0.95 of the radius
    square = (jnp.abs(x) + jnp.abs(y) - half) / math.sqrt(2)
    circle = jnp.hypot(jnp.abs(x) - half / 2, y + half / 2) - half / math.sqrt(2)
    return jnp.minimum(square, circle)
