# SPDX-License-Identifier: MIT
"""Templates of the shapes, which `reader` compares objects with.

They are drawn from the shapes' definitions in words with Pillow's polygons and ellipses, without
the renderer's distances, and lie in the canonical frame: the centroid at the origin and the area 1,
neither of which blur changes.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from jaxgen.world.scene import SHAPES

GRID, SPAN = 40, 1.0  # GRID^2 samples of [-SPAN, SPAN]^2, lengths in sqrt(area)
SOFTNESS = (0.03, 0.08, 0.13)  # deviations of the blur in which every shape is kept, in sqrt(area)
DRAWN = 100  # pixels from the centre to the tips of a shape as Pillow draws it


class Templates(NamedTuple):
    """The shapes in the canonical frame."""

    cover: np.ndarray  # float32 [len(SOFTNESS), len(SHAPES), GRID, GRID] in [0, 1]
    radius: np.ndarray  # [len(SHAPES)], in sqrt(area)
    center: np.ndarray  # [len(SHAPES), 2], x and y of the centre, in sqrt(area)


def axis() -> np.ndarray:
    """The places of the samples along one axis of the frame, [GRID], in sqrt(area)."""
    return (np.arange(GRID) + 0.5) * (2 * SPAN / GRID) - SPAN


@functools.cache
def canonical(shapes: tuple[str, ...] = SHAPES) -> Templates:
    """These shapes in the canonical frame, in their order; drawn once for each process."""
    covers, radii, centers = [], [], []
    for shape in shapes:
        picture = _draw(shape)
        unit = math.sqrt(picture.sum())
        row, column = (float(middle) for middle in np.asarray(ndimage.center_of_mass(picture)))
        grid = np.meshgrid(row + unit * axis(), column + unit * axis(), indexing="ij")
        blurred = [ndimage.gaussian_filter(picture, blur * unit) for blur in SOFTNESS]
        covers.append([ndimage.map_coordinates(one, grid, order=1) for one in blurred])
        radii.append(DRAWN / unit)
        middle = (len(picture) - 1) / 2
        centers.append(((middle - column) / unit, (middle - row) / unit))
    return Templates(np.stack(covers, axis=1), np.asarray(radii), np.asarray(centers))


def _draw(shape: str) -> np.ndarray:
    """The picture of one shape, 1 on 0, its centre in the middle: float32 [3 DRAWN, 3 DRAWN]."""
    image = Image.new("L", (3 * DRAWN, 3 * DRAWN))
    pen = ImageDraw.Draw(image)
    middle = (3 * DRAWN - 1) / 2

    def disc(x: float, y: float, radius: float, fill: int = 1) -> None:
        ends = [x - radius, y - radius, x + radius, y + radius]
        pen.ellipse([middle + DRAWN * end for end in ends], fill=fill)

    def polygon(*corners: tuple[float, float]) -> None:
        pen.polygon([(middle + DRAWN * x, middle + DRAWN * y) for x, y in corners], fill=1)

    def tips(number: int, radius: float, turn: float = 0.0) -> list[tuple[float, float]]:
        """Corners of a regular polygon, the first above the centre, turned by `turn` radians."""
        angles = 2 * math.pi / number * np.arange(number) + turn
        return [(float(radius * np.sin(a)), float(-radius * np.cos(a))) for a in angles]

    match shape:
        case "circle":
            disc(0, 0, 0.9)
        case "square":
            polygon((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
        case "triangle":  # equilateral, lowered to stand in the middle
            polygon(*((x, y + 0.2) for x, y in tips(3, 1.1)))
        case "star":
            polygon(*itertools.chain(*zip(tips(5, 1), tips(5, 0.45, math.pi / 5), strict=True)))
        case "heart":  # a square on its tip, 0.62 from its centre, and a half circle on either side
            polygon(*((x, y + 0.33) for x, y in tips(4, 0.62)))
            disc(-0.31, 0.02, 0.31 * math.sqrt(2))
            disc(0.31, 0.02, 0.31 * math.sqrt(2))
        case "ring":
            disc(0, 0, 0.96)
            disc(0, 0, 0.48, fill=0)
        case "cross":
            polygon((-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32))
            polygon((-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1))
        case "diamond":
            polygon((0, -1), (0.68, 0), (0, 1), (-0.68, 0))
        case "square ring":
            polygon((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
            hole = [middle + DRAWN * end for end in (-0.4, -0.4, 0.4, 0.4)]
            pen.rectangle(hole, fill=0)
        case _:
            raise ValueError(f"no template of shape {shape!r}; draw it here as the renderer does")
    return np.asarray(image, np.float32)
