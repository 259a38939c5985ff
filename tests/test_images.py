# SPDX-License-Identifier: MIT
import numpy as np
import pytest
from PIL import Image

from jaxgen.pictures import images


def numbered(count, height=3, width=2, channels=1):
    """Images of one grey value each: 10, 20, 30, ..."""
    values = 10 * np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None]
    return np.tile(values, (1, height, width, channels))


def test_floats_are_rounded_to_the_nearest_level_and_clipped():
    x = np.array([-1.0, 1.0, 0.0, -5.0, 7.0, 0.5 / 127.5 - 1 - 1e-4, 0.5 / 127.5 - 1 + 1e-4])
    np.testing.assert_array_equal(images.to_uint8(x), [0, 255, 128, 0, 255, 0, 1])
    np.testing.assert_array_equal(images.to_uint8(np.array([np.inf, -np.inf])), [255, 0])
    np.testing.assert_array_equal(images.to_uint8(np.array([1.0, np.nan])), [255, 0])
    with pytest.raises(ValueError, match="pixels that are no number"):
        images.measurable(np.array([0.0, np.nan]))
    np.testing.assert_array_equal(images.measurable(x), images.to_uint8(x))


def test_all_256_levels_come_back_exactly():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(images.to_uint8(levels / np.float32(127.5) - 1), levels)


def test_grid_places_every_pixel_row_by_row_with_white_gaps(monkeypatch):
    monkeypatch.setattr(images, "TILE", 1)  # no enlarging
    got = np.asarray(images.grid(numbered(3), columns=2))
    w, a, b, c = 255, 10, 20, 30
    top, bottom = [w, w, a, a, w, w, b, b, w, w], [w, w, c, c, w, w, w, w, w, w]
    gap = [[w] * 10] * 2
    np.testing.assert_array_equal(got, gap + [top] * 3 + gap + [bottom] * 3 + gap)


def test_grid_enlarges_small_images_without_blur():
    image = np.array([[0, 100], [200, 50]], np.uint8)[None, ..., None]
    got = np.asarray(images.grid(image))[images.GAP : -images.GAP, images.GAP : -images.GAP]
    np.testing.assert_array_equal(got, np.kron(image[0, ..., 0], np.ones((28, 28), np.uint8)))


def test_grid_of_colour_images_keeps_the_channels_and_is_nearly_square():
    x = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    picture = images.grid(x)
    assert (picture.mode, picture.size) == ("RGB", (3 * 66 + 2, 2 * 66 + 2))
    np.testing.assert_array_equal(np.asarray(picture)[68:132, 68:132], x[4])


@pytest.mark.parametrize(
    "bad",
    [np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 3, 2), np.uint8), np.zeros((2, 3, 3, 1))],
)
def test_grid_refuses_what_is_no_batch_of_uint8_images(bad):
    with pytest.raises(ValueError, match=r"takes uint8 images \[N, H, W, 1 or 3\], got"):
        images.grid(bad)


def middles(picture):
    """One grey value for each tile of a grid of images enlarged to the full tile."""
    step = images.TILE + images.GAP
    return np.asarray(picture)[images.TILE // 2 :: step, images.TILE // 2 :: step]


def test_rows_of_inputs_alternate_with_rows_of_reconstructions():
    first, second = numbered(5, 8, 8), numbered(5, 8, 8) + 1
    got = middles(images.beside(first, second, columns=2))  # the fifth does not fill a row
    np.testing.assert_array_equal(got, [[10, 20], [11, 21], [30, 40], [31, 41]])


def test_fewer_images_than_columns_make_one_row_of_each():
    got = middles(images.beside(numbered(3, 8, 8), numbered(3, 8, 8) + 1, columns=10))
    np.testing.assert_array_equal(got, [[10, 20, 30], [11, 21, 31]])


def test_label_stands_above_the_untouched_picture():
    picture = images.grid(numbered(4, 8, 8))
    result = images.labelled(picture, "step 1,000")
    assert result.size == (picture.width, picture.height + 22)
    below = np.asarray(result)[22:]
    np.testing.assert_array_equal(below, np.asarray(picture.convert("RGB")))
    assert np.asarray(result)[:22].min() < 128  # something is written


def test_saved_picture_reads_back_and_leaves_no_other_file(tmp_path):
    picture = images.grid(numbered(4))
    path = tmp_path / "new" / "folder" / "grid.png"
    images.save(path, picture)
    with Image.open(path) as read:
        np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_failed_drawing_leaves_the_old_file(tmp_path):
    class Broken:
        def save(self, file, **options):
            file.write_bytes(b"half a picture")
            raise OSError("disk full")

    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        images.save(path, Broken())
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_animation_has_every_frame_loops_and_rests_on_the_last(tmp_path):
    path = tmp_path / "samples.gif"
    images.save_gif(path, [images.grid(numbered(n, 8, 8), 2) for n in (1, 2, 1)], seconds=0.5)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["loop"]) == (3, 0)
        durations = []
        for frame in range(3):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    assert durations == [500, 500, 2000]


def rows(count):
    return [{"step": 10 * i, "loss": 1 / (1 + i), "kl_nats": float(i)} for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 100])
def test_curves_are_a_picture_with_lines_in_it(tmp_path, count):
    path = tmp_path / "curves.png"
    images.save_curves(path, rows(count), "a run")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 200
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    assert count == 1 or blue.sum() > 100


def test_curves_take_metrics_of_several_seeds_at_once(tmp_path):
    images.save_curves(tmp_path / "c.png", [{"step": i, "loss": [1.0, 2.0]} for i in (1, 2)], "")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_no_rows_draw_no_curves(tmp_path):
    images.save_curves(tmp_path / "curves.png", [], "a run")
    assert list(tmp_path.iterdir()) == []


def test_running_mean_of_a_line_lies_on_the_line():
    """Each mean stands at the middle of its window, so a ramp is not shifted sideways."""
    steps = 10 * np.arange(100)
    for count in (1, 7, 60, 100):
        at, means = images._smooth(steps[:count], 3.0 * steps[:count])
        np.testing.assert_allclose(means, 3.0 * at)
    noise = np.random.default_rng(0).standard_normal(1000)
    _, means = images._smooth(np.arange(1000), noise)
    assert means.std() < 0.3  # 50 in a window: 1 / sqrt(50)


def test_first_wild_steps_do_not_dictate_the_limits():
    values = np.concatenate([[1e6], np.linspace(2, 1, 999)])
    low, high = images._range(values)
    assert low < 1
    assert 2 <= high < 3
    assert images._range(np.ones(5))[0] < 1 < images._range(np.ones(5))[1]


def test_captioned_images_stand_enlarged_in_their_cells():
    colours = np.random.default_rng(0).integers(0, 200, (5, 20, 30, 3), dtype=np.uint8)
    picture = images.captioned(colours, ["one"] * 5, columns=3, scale=2)
    below = 13 + 6  # a line of text
    assert (picture.mode, picture.size) == ("RGB", (3 * (60 + 10) + 10, 2 * (40 + below + 10) + 10))
    pixels = np.asarray(picture)
    for i, colour in enumerate(colours):
        left, top = 10 + 70 * (i % 3), 10 + (50 + below) * (i // 3)
        tile = pixels[top : top + 40, left : left + 60]
        np.testing.assert_array_equal(tile, np.kron(colour, np.ones((2, 2, 1), np.uint8)))
        assert pixels[top + 42 : top + 40 + below, left : left + 60].min() < 100  # words
    assert (pixels[70:, 152:] == 255).all()  # no sixth image


def test_long_captions_are_wrapped_within_the_width_of_their_image():
    black = np.full((2, 40, 40, 3), 255, np.uint8)
    short = images.captioned(black, ["a star", "a ring"], columns=2)
    long = images.captioned(black, ["a large red star above a small blue ring", "a"], columns=2)
    assert long.width == short.width
    lines = 1 + (long.height - short.height) / 13
    assert lines in (3, 4, 5)
    below = np.asarray(long.convert("L"))[10 + 80 + 2 :]
    assert (below[:, 10 + 80 : 10 + 80 + 10] > 200).all()  # nothing between the columns
    dark = np.flatnonzero(below[:, 10:90].min(1) < 128)
    assert dark.max() - dark.min() > 2 * 13  # over several lines
    assert dark.max() < len(below) - 10


def test_a_word_wider_than_its_image_keeps_a_line_of_its_own():
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    wrapped = images.captioned(white, ["a circumference of"], columns=1)
    plain = images.captioned(white, ["a"], columns=1)
    assert wrapped.height - plain.height == 2 * 13
