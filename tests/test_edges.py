# SPDX-License-Identifier: MIT
"""Canny's edges: where they must be, and beside what OpenCV draws."""

import numpy as np
import pytest
from PIL import Image
from support import scripts

from jaxgen.pictures import edges

# OpenCV 5.0.0: Canny(picture, 300, 700)
OPENCV = [
    "...............#....",
    "........###...##.#.#",
    "......##...##..#..#.",
    ".....##.....##.#.###",
    ".....#...###.#.#....",
    "....#.###....#......",
    "####........##......",
    "....#....###.#.....#",
    ".....#.##....#...##.",
    "#######.....##..##..",
    "......####.##..##...",
    "..........##........",
    "....##........##...#",
    "####..##.....##..#..",
]


def test_edges_are_opencvs():
    y, x = np.mgrid[:14, :20]
    disc = 255 * ((x - 9) ** 2 + (y - 6) ** 2 < 25)
    channels = [(x * x + 3 * y * y) % 256, disc, (40 * y + 7 * x) % 256]
    found = edges.canny(np.stack(channels, axis=-1).astype(np.uint8), 300, 700)
    assert found.shape == (14, 20, 3)
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    assert ["".join("#" if v else "." for v in row) for row in found[..., 0]] == OPENCV


def test_a_step_is_one_line_and_a_plain_picture_has_none():
    picture = np.zeros((9, 12), np.uint8)
    assert not edges.canny(picture).any()
    picture[:, 5:] = 255
    for turned, axis in ((picture, 1), (picture.T, 0)):
        found = edges.canny(turned)[..., 0] > 0
        assert found.any(axis=1 - axis).sum() == 1  # one row or column of pixels
        assert found.all(axis=1 - axis)[4]


def test_a_weak_edge_is_kept_where_it_touches_a_strong_one():
    picture = np.zeros((20, 12), np.uint8)
    picture[:10, 6:] = 255  # strong above, 1020
    picture[10:, 6:] = 40  # weak below, 160
    assert edges.canny(picture, 100, 200)[15, :, 0].any()
    assert not edges.canny(picture[12:], 100, 200).any()
    assert edges.canny(picture[12:], 100, 150).any()


@pytest.mark.parametrize(
    ("picture", "thresholds", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), (1, 2), "shape .4, 4, 4."),
        (np.zeros((0, 4), np.uint8), (1, 2), "shape .0, 4."),
        (np.zeros((4, 4), np.float32), (1, 2), "is float32; expected uint8"),
        (np.zeros((4, 4), np.uint8), (3, 2), "thresholds are 3 and 2"),
    ],
)
def test_wrong_pictures_are_refused(picture, thresholds, message):
    with pytest.raises(ValueError, match=message):
        edges.canny(picture, *thresholds)


def test_the_script_gives_edges_to_the_controlnet(tmp_path):
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:, 12:] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    with scripts.loaded("text_to_image") as module:
        from parts.text_to_image_options import Config, FromImage

        from_image = FromImage(control_image=(tmp_path / "a.png",), control_edges=True)
        _, _, hint = module.read_pictures(Config(from_image=from_image))
    np.testing.assert_array_equal(np.asarray(hint), edges.canny(picture))
