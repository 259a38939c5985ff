# SPDX-License-Identifier: MIT
"""Folders of pictures of any size and mode become uint8 arrays of one shape."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import sets

RNG = np.random.default_rng(0)


def picture(height: int = 6, width: int = 6) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def save(path: pathlib.Path, image: np.ndarray | Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)


def load_one(tmp_path: pathlib.Path, image, name: str = "a.png", size=None, channels=None, **save_):
    """The only picture of a folder, after a round trip through a file."""
    save(tmp_path / "one" / name, image, **save_)
    loaded = sets.load(str(tmp_path / "one"), image_size=size, channels=channels)
    assert len(loaded.images) == 1
    return loaded.images[0]


# layouts


def test_folders_of_the_system_are_no_classes_and_folders_in_classes_are_named(tmp_path):
    for name in ("a/x/1.png", "a/y/2.png", "b/3.png", "__MACOSX/a/4.png", "@eaDir/b/5.png"):
        save(tmp_path / name, picture())
    opened = sets.open_source(str(tmp_path))
    assert opened.class_names == ("a", "b")
    assert opened.description.endswith("no classes of their own: the folders a/x, a/y")


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path):
    stored = {}
    for name in ("dog", "ant", "cat"):
        for i in range(10):
            stored[f"{name}/{i}"] = picture()
            save(tmp_path / name / f"{i}.png", stored[f"{name}/{i}"])
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden").mkdir()

    train, test = sets.load(str(tmp_path)), sets.load(str(tmp_path), "test")

    assert train.class_names == ("ant", "cat", "dog")
    assert test.labels.tolist() == [0, 1, 2]
    for label, name in enumerate(train.class_names):
        ours = train.images[train.labels == label]
        np.testing.assert_array_equal(ours, [stored[f"{name}/{i}"] for i in range(9)])
        np.testing.assert_array_equal(test.images[label], stored[f"{name}/9"])


def test_flat_folders_have_no_labels(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.png", picture())
    train, test = sets.load(str(tmp_path)), sets.load(str(tmp_path), "test")
    assert (len(train.images), len(test.images)) == (9, 1)
    assert train.class_names == ()
    assert not train.labels.any()


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_split_folders_are_taken_as_given(tmp_path, test_name):
    for split, names in (("train", "abc"), (test_name, "bc")):
        for name in names:
            save(tmp_path / split / name / "1.png", picture())
    train, test = sets.load(str(tmp_path)), sets.load(str(tmp_path), "test")
    assert train.labels.tolist() == [0, 1, 2]
    assert test.labels.tolist() == [1, 2]  # the numbers of the training classes
    assert test.class_names == ("a", "b", "c")


def test_classes_only_in_the_test_folder_are_refused(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", picture())
    save(tmp_path / "test" / "z" / "1.png", picture())
    with pytest.raises(ValueError, match=r"classes \['z'\]"):
        sets.load(str(tmp_path), "test")


def test_pictures_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "a" / "1.png", picture())
    save(tmp_path / "1.png", picture())
    with pytest.raises(ValueError, match="beside the class folders"):
        sets.load(str(tmp_path))


def test_a_folder_without_pictures_says_what_is_understood(tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"expected pictures .*\.png.* IDX"):
        sets.load(str(tmp_path))


# sizes


def test_mixed_sizes_without_image_size_list_the_sizes(tmp_path):
    save(tmp_path / "1.png", picture(6, 8))
    save(tmp_path / "2.png", picture(6, 8))
    save(tmp_path / "3.png", picture(5, 5))
    with pytest.raises(ValueError, match=r"8x6 \(2 pictures\), 5x5 .*--image-size"):
        sets.load(str(tmp_path))
    assert sets.load(str(tmp_path), image_size=4).images.shape == (3, 4, 4, 3)


@pytest.mark.parametrize("wide", [True, False])
def test_the_longer_side_is_cropped_to_its_middle(tmp_path, wide):
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 100  # only the middle square may survive
    cropped = load_one(tmp_path, image if wide else image.swapaxes(0, 1), size=8)
    assert (cropped == 100).all()


def test_resizing_down_averages_instead_of_skipping(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = load_one(tmp_path, board, size=8)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_large_jpegs_decoded_small_agree_with_the_full_decoding(tmp_path):
    y, x = np.mgrid[:256, :256]
    smooth = np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)
    small = load_one(tmp_path, smooth, "a.jpg", size=16, quality=95)
    means = smooth.reshape(16, 16, 16, 16, 3).mean((1, 3))
    assert np.abs(small - means).max() < 4  # of 255; block means of a smooth picture


# modes


def test_grey_sets_have_one_channel_and_mixed_sets_three(tmp_path):
    grey = picture()[..., 0]
    assert load_one(tmp_path, grey).shape == (6, 6, 1)
    save(tmp_path / "one" / "b.png", picture())
    both = sets.load(str(tmp_path / "one")).images
    assert both.shape == (2, 6, 6, 3)
    np.testing.assert_array_equal(both[0], np.repeat(grey[..., None], 3, -1))


def test_colour_to_grey_weighs_as_rec_601(tmp_path):
    image = picture()
    grey = load_one(tmp_path, image, channels=1)
    luma = image @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(grey[..., 0] - luma).max() <= 1


def test_transparent_parts_are_laid_on_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2, :, 3] = 255  # the upper half is opaque black, the lower half transparent black
    image[1, :, 3] = 128
    loaded = load_one(tmp_path, image)
    assert (loaded[0] == 0).all()
    assert np.abs(loaded[1].astype(int) - 127).max() <= 1
    assert (loaded[2:] == 255).all()


def test_palettes_and_their_transparency_are_resolved(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    loaded = load_one(tmp_path, image, "a.png", transparency=b"\xff\xff\x00")
    np.testing.assert_array_equal(
        loaded, [[[10, 20, 30], [40, 50, 60]], [[255, 255, 255], [10, 20, 30]]]
    )


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path):
    deep = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    np.testing.assert_array_equal(load_one(tmp_path, deep)[..., 0], [[0, 0, 1], [128, 255, 255]])


def test_cmyk_becomes_rgb(tmp_path):
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    loaded = load_one(tmp_path, cyan, "a.tif")
    np.testing.assert_array_equal(loaded[0, 0], [0, 255, 255])


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_cameras_orientation_is_applied(tmp_path, orientation, turns):
    image = picture(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation  # EXIF 2.3, table 4: 6 is shown turned 90 degrees clockwise
    np.testing.assert_array_equal(load_one(tmp_path, image, exif=exif), np.rot90(image, turns))


def test_a_png_with_its_orientation_after_the_pixels_is_refused_not_squeezed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", picture(4, 6), exif=exif)
    chunks = (tmp_path / "a.png").read_bytes()
    start, pixels_start = chunks.index(b"eXIf") - 4, chunks.index(b"IDAT") - 4
    end = chunks.index(b"IEND") - 4
    late = chunks[:start] + chunks[pixels_start:end] + chunks[start:pixels_start] + chunks[end:]
    (tmp_path / "a.png").write_bytes(late)
    with pytest.raises(ValueError, match=r"a\.png: is 4x6, expected 6x4"):
        sets.load(str(tmp_path))
    assert sets.load(str(tmp_path), image_size=4).images.shape == (1, 4, 4, 3)


def test_bilevel_pictures_are_black_and_white(tmp_path):
    image = Image.fromarray(np.eye(4, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(load_one(tmp_path, image)[..., 0], np.eye(4) * 255)


@pytest.mark.parametrize(
    ("mode", "channels", "dtype"), [("L", 1, np.uint8), ("RGB", 3, np.uint8), ("L", 1, np.uint16)]
)
def test_pictures_of_only_0_and_1_are_black_and_white_also_when_resized(
    tmp_path, mode, channels, dtype
):
    bits = RNG.integers(0, 2, (3, 8, 8, channels))
    bits[0] = 0  # a black picture does not decide
    for i, image in enumerate(bits):
        shaped = image[..., 0] if channels == 1 else image
        save(tmp_path / "bits" / f"{i}.png", Image.fromarray(shaped.astype(dtype)))
        save(tmp_path / "bytes" / f"{i}.png", Image.fromarray((shaped * 255).astype(np.uint8)))
    for size in (None, 5):
        black_and_white = sets.load(str(tmp_path / "bits"), image_size=size).images
        expected = sets.load(str(tmp_path / "bytes"), image_size=size).images
        np.testing.assert_array_equal(black_and_white, expected)


def test_a_dark_picture_among_others_stays_dark(tmp_path):
    save(tmp_path / "a.png", np.eye(6, dtype=np.uint8))
    save(tmp_path / "b.png", picture()[..., 0])
    np.testing.assert_array_equal(sets.load(str(tmp_path)).images[0, ..., 0], np.eye(6))


def test_a_set_of_zeros_and_ones_with_another_value_names_the_picture(tmp_path):
    for i in range(90):  # more than are looked at
        save(tmp_path / f"{i:02}.png", np.eye(4, dtype=np.uint8) * (2 if i == 4 else 1))
    with pytest.raises(ValueError, match=r"04\.png: has the value 2, where other pictures"):
        sets.load(str(tmp_path))


def test_eight_bits_stored_as_sixteen_are_refused(tmp_path):
    save(tmp_path / "a.png", Image.fromarray(np.full((4, 4), 200, np.uint16)))
    with pytest.raises(ValueError, match="16 bits, but the largest value is 200; store 8 bits"):
        sets.load(str(tmp_path))


def test_floating_point_pictures_are_refused(tmp_path):
    save(tmp_path / "a.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(ValueError, match=r"a\.tif: pixels of mode F have no known range"):
        sets.load(str(tmp_path))


# damage


def test_unreadable_pictures_are_counted_and_the_first_named(tmp_path):
    for i in range(4):
        save(tmp_path / f"good{i}.png", picture(16, 16))
    whole = (tmp_path / "good0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>404</html>")

    with pytest.raises(ValueError, match=r"3 of 7 examples cannot be read") as caught:
        sets.load(str(tmp_path), image_size=16, channels=3)
    for line in ("cut.png: ", "empty.jpg: an empty file", "text.jpg: not a picture"):
        assert line in str(caught.value)

    with pytest.raises(ValueError, match=r"2 of 7 pictures cannot be opened"):
        sets.load(str(tmp_path))  # headers are read first


def test_pictures_over_pillows_pixel_limit_are_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.png", picture(12, 12))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png: .*(limit|exceeds)"):
        sets.load(str(tmp_path))


def test_pictures_over_the_limit_are_refused_where_pillow_only_warns(tmp_path, monkeypatch):
    save(tmp_path / "a.png", picture(12, 12))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(Image, "_decompression_bomb_check", lambda size: None)
    with pytest.raises(ValueError, match=r"12x12 is over Pillow's limit of 100"):
        sets.load(str(tmp_path), image_size=4, channels=3)
