# SPDX-License-Identifier: MIT
"""The reader of pictures, by geometry and colour alone: it judges whether a prompt was followed.

`read`: uint8 [64, 64, 3] -> SeenScene; `check`: (Scene, SeenScene) -> what of the caption is true.
Nothing is learned. The renderer's distances are not used: shapes are compared with `templates`,
polygons and ellipses. Reader and renderer share only the definitions of the words: the names, the
palettes, the ranges of radii and the proportions of the shapes.

Measured on draw_many(key(0), 3000), rendered, with captions that leave out nothing, in % of
pictures (the relation was always right), noise from seed 0:

                                                     count  shape  color   size  ground    all
    as rendered                                        100    100    100    100     100    100
    colours shifted by up to 10 of 255                 100    100    100    100     100    100
    blurred (0.7 pixels) and noisy (6 of 255)          100    100    100    100     100    100
    both                                               100    100    100    100     100    100
    blurred (1.2 pixels) and noisy (10 of 255)         100    100    100    100     100    100
    halved to 32x32 and enlarged again                 100    100    100    100     100    100
    bent by a smooth field of 1 pixel, 0.7 blur, 6     100   99.3    100   99.8     100   99.3
    blurred (1.6 pixels) and noisy (4 of 255)          100   98.9   99.2    100     100   98.4
    JPEG of quality 25                                99.8   95.4   99.3   99.3     100   94.6

Centres are read to 0.2 and radii to 0.5 pixels in the first four; about 400 pictures/s on one core.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from jaxgen.world import caption, render, templates
from jaxgen.world.scene import RADII, RELATIONS, SHAPES, SIZE, Scene

ATTRIBUTES = ("count", "shape", "color", "size", "relation", "background", "all")
UNKNOWN = -1  # index of a colour or a shape that is like none of the world's

# distances in RGB, where a shift of 10 per channel is at most 17; the nearest names are 63 apart
CONTRAST = 36.0  # from the background: less is no object (the faintest pair is 89 apart)
FAR = 60.0  # from every colour of a palette: further has no name
SPLITS = (0.3, 0.4, 0.5)  # of an object's contrast: levels above which blur joins no objects
REACH = 2.5  # pixels that the soft edge of an object reaches beyond its hard mask
SMALLEST = 24  # pixels; less is a speck (the smallest object, a star, covers 85)
LIKENESS = 0.7  # least overlap with a template: below, the shape has no name
MIDDLE = (RADII[0][1] + RADII[1][0]) / 2  # pixels, between small and large
STEP = 4.0  # pixels between centres, or from the middle, that make a relation
SCALES = (0.92, 1.0, 1.08)  # of the canonical frame, searched
ASPECTS = (0.88, 1.0, 1.14)  # width to height of the canonical frame, searched


class SeenObject(NamedTuple):
    """One object as the picture shows it."""

    shape: int  # into scene.SHAPES, or UNKNOWN
    color: int  # into scene.COLORS, or UNKNOWN
    size: int  # into scene.SIZES
    center: tuple[float, float]  # x to the right and y down, in pixels
    radius: float  # pixels from the centre to the tips, as in Scene
    confidence: float  # overlap with the best template, intersection over union in [0, 1]


class SeenScene(NamedTuple):
    """The background and the objects that a picture shows."""

    background: int  # into scene.BACKGROUNDS, or UNKNOWN
    objects: tuple[SeenObject, ...]


def read(picture: np.ndarray, shapes: tuple[str, ...] = SHAPES) -> SeenScene:
    """The background and the objects of one picture, uint8 [SIZE, SIZE, 3].

    shapes: the names that an object may have, SHAPES and some of NEW_SHAPES.
    """
    if picture.shape != (SIZE, SIZE, 3) or picture.dtype != np.uint8:
        raise ValueError(
            f"a picture of shape {picture.shape} and type {picture.dtype} cannot be read; "
            f"give uint8 of shape ({SIZE}, {SIZE}, 3)"
        )
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground, known = np.median(border, axis=0), templates.canonical(shapes)
    masks = _objects(np.linalg.norm(pixels - ground, axis=-1))
    return SeenScene(
        _nearest(ground, render.BACKGROUNDS),
        tuple(_identify(pixels, ground, mask, region, known) for mask, region in masks),
    )


def check(scene: Scene, seen: SeenScene) -> dict[str, bool]:
    """Whether the picture shows what the caption of one host scene says, by attribute.

    Keys: count, shape, color; size, relation and background where the caption says them; all. The
    relation of an only object is that to the middle of the picture.
    Of the ways to match described and seen objects it takes the one with most shapes and colours
    right, then sizes, then the relation. An object that was not seen has nothing right.
    """
    number = int(scene.count)
    objects: list[SeenObject | None] = list(seen.objects)
    objects += [None] * (number - len(objects))
    verdicts = [_verdict(scene, matched) for matched in itertools.permutations(objects, number)]
    best = max(verdicts, key=_rank)
    checks = {"count": len(seen.objects) == number}
    checks |= {name: all(right) for name, right in best.items() if right}
    if caption.says_background(scene):
        checks["background"] = seen.background == int(scene.background)
    return checks | {"all": all(checks.values())}


def report(checks: list[dict[str, bool]]) -> dict[str, tuple[float, int]]:
    """Counts for each attribute the share that is right and the prompts that name it."""
    answers = {name: [one[name] for one in checks if name in one] for name in ATTRIBUTES}
    return {name: (sum(right) / len(right), len(right)) for name, right in answers.items() if right}


def _verdict(scene: Scene, matched: tuple[SeenObject | None, ...]) -> dict[str, list[bool]]:
    """Which attributes are right if the described objects are `matched`, in this order."""
    pairs = list(enumerate(matched))
    return {
        "shape": [f is not None and f.shape == int(scene.shape[i]) for i, f in pairs],
        "color": [f is not None and f.color == int(scene.color[i]) for i, f in pairs],
        "size": [
            f is not None and f.size == int(scene.size[i])
            for i, f in pairs
            if caption.says_size(scene, i)
        ],
        "relation": [_related(scene, *matched)] if caption.says_place(scene) else [],
    }


def _rank(verdict: dict[str, list[bool]]) -> tuple[int, int, int]:
    """The order of verdicts: right shapes and colours, then sizes, then the relation."""
    named = sum(verdict["shape"]) + sum(verdict["color"])
    return named, sum(verdict["size"]), sum(verdict["relation"])


def _related(scene: Scene, *matched: SeenObject | None) -> bool:
    """Whether the first object has the scene's relation to the second, or to the middle."""
    centers = [f.center for f in matched if f is not None]
    if len(centers) < len(matched):
        return False
    first, second = centers if len(centers) == 2 else (*centers, (SIZE / 2, SIZE / 2))
    right, down = np.subtract(second, first)
    along, across = {
        "left of": (right, down),
        "right of": (-right, down),
        "above": (down, right),
        "below": (-down, right),
    }[RELATIONS[int(scene.relation)]]
    return bool(along > abs(across) and along > STEP)


def _nearest(color: np.ndarray, palette: np.ndarray) -> int:
    """The index of the nearest colour, in RGB, or UNKNOWN if all are further than FAR.

    CIELAB would confuse white with cream (20 apart there) and blue with purple (27) more easily: a
    shift of 10 per channel moves them by up to 12 and 14.
    """
    distances = np.linalg.norm(palette - color, axis=-1)
    return int(np.argmin(distances)) if distances.min() <= FAR else UNKNOWN


def _objects(contrast: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The objects' hard masks, each with the region that holds the soft edge too: bool [H, W].

    contrast: distance from the background's colour, [H, W].
    """
    masks = [part for mask in _parts(contrast > CONTRAST) for part in _split(contrast, mask)]
    if not masks:
        return []
    owner = np.zeros(contrast.shape, np.int32)
    for i, mask in enumerate(masks):
        owner[mask] = i + 1
    nearest: Any = ndimage.distance_transform_edt(owner == 0, return_indices=True)
    distance, (row, column) = nearest
    owner = np.where(distance <= REACH, owner[row, column], 0)
    return [(mask, owner == i + 1) for i, mask in enumerate(masks)]


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask, without those smaller than SMALLEST."""
    labels, _ = ndimage.label(mask)
    areas = np.bincount(labels.ravel())
    return [labels == i for i in range(1, len(areas)) if areas[i] >= SMALLEST]


def _split(contrast: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The objects of one connected mask: above a higher contrast, blur joins them no more.

    Levels go from low to high: a faint object beside a strong one is split off before it vanishes.
    """
    peak = np.percentile(contrast[mask], 90)
    parts = [mask]
    for level in SPLITS:
        parts = _parts(mask & (contrast > level * peak))
        if len(parts) > 1:
            return [piece for part in parts for piece in _split(contrast, part)]
    return parts or [mask]


def _identify(
    pixels: np.ndarray,
    ground: np.ndarray,
    mask: np.ndarray,
    region: np.ndarray,
    known: templates.Templates,
) -> SeenObject:
    """The object whose pixels are `mask`, with a soft edge inside `region`."""
    contrast = np.linalg.norm(pixels - ground, axis=-1)
    inner = ndimage.binary_erosion(mask)
    inner = inner if inner.any() else mask
    color = np.median(pixels[inner & (contrast >= np.median(contrast[inner]))], axis=0)
    away = color - ground
    # each pixel's share of the object: 0 at the background's colour, 1 at the object's
    cover = np.clip((pixels - ground) @ away / max(away @ away, 1.0), 0, 1) * region
    if cover.sum() < SMALLEST:  # many colours at once, so that none is the object's
        cover = mask.astype(np.float32)
    centroid = np.asarray(ndimage.center_of_mass(cover))[::-1] + 0.5  # x, y
    shape, likeness, scale = _shape(cover, centroid, math.sqrt(cover.sum()), known)
    unit = scale * math.sqrt(cover.sum())
    radius = float(known.radius[shape] * unit)
    x, y = centroid + known.center[shape] * unit
    return SeenObject(
        shape if likeness >= LIKENESS else UNKNOWN,
        _nearest(color, render.COLORS),
        int(radius > MIDDLE),
        (float(x), float(y)),
        radius,
        likeness,
    )


def _shape(
    cover: np.ndarray, centroid: np.ndarray, unit: float, known: templates.Templates
) -> tuple[int, float, float]:
    """The template most like the object, their overlap (soft intersection over union), its scale.

    cover: [H, W]; unit: sqrt(area) in pixels. Centroid and area, which blur does not change, bring
    the object to the templates' frame.
    """
    covers = known.cover
    frames = list(itertools.product(SCALES, ASPECTS))
    overlaps = []
    for scale, aspect in frames:
        stretch = np.asarray([[math.sqrt(aspect)], [1 / math.sqrt(aspect)]])  # of x, y
        x, y = centroid[:, None] - 0.5 + scale * unit * stretch * templates.axis()
        grid = np.meshgrid(y, x, indexing="ij")
        sampled = ndimage.map_coordinates(cover, grid, order=1)  # [GRID, GRID]
        both = np.minimum(sampled, covers).sum((-2, -1))
        either = np.maximum(sampled, covers).sum((-2, -1))
        overlaps.append((both / either).max(0))  # over the softness
    best, shape = np.unravel_index(np.argmax(overlaps), (len(frames), covers.shape[1]))
    return int(shape), float(overlaps[best][shape]), frames[best][0]
