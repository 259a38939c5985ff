# SPDX-License-Identifier: MIT
"""A pixel means what its type and range say, in calls, files and data sets alike."""

import os
import pathlib
import threading
import time
import types
import warnings

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import picture_file, pillow, pixels, sets
from jaxgen.stable_diffusion.call import image_arguments

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (16, 24, 3), np.uint8)
GREY = BYTES[..., 0]
EXPECTED = BYTES.astype(np.float32) / 255 * 2 - 1
GREY_EXPECTED = np.repeat(GREY[..., None], 3, -1).astype(np.float32) / 255 * 2 - 1
OPAQUE = np.full((16, 24, 1), 255, np.uint8)
WHITE = GREY >= 128


class Tensor:
    """What code can see of a torch tensor, bfloat16 included, which NumPy refuses."""

    def __init__(self, array, is_bfloat16=False):
        self.array, self.is_bfloat16 = array, is_bfloat16

    def detach(self):
        return self

    cpu = detach

    def is_floating_point(self):
        return self.array.dtype.kind == "f"

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def __array__(self, dtype=None, copy=None):
        if self.is_bfloat16:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


def first(array):
    """Channels before height and width, as torch has them."""
    return np.moveaxis(array, -1, -3)


def palette():
    return Image.fromarray(BYTES).quantize(4)


TAKEN = {
    "uint8": (BYTES, EXPECTED),
    "batch": (BYTES[None], EXPECTED),
    "grey": (GREY, GREY_EXPECTED),
    "grey with an axis": (GREY[..., None], GREY_EXPECTED),
    "grey and alpha": (np.concatenate([GREY[..., None], OPAQUE], -1), GREY_EXPECTED),
    "alpha": (np.concatenate([BYTES, OPAQUE], -1), EXPECTED),
    "alpha as floats": (np.concatenate([BYTES, OPAQUE], -1) / 255, EXPECTED),
    "transparent": (np.concatenate([BYTES, 0 * OPAQUE], -1), np.ones_like(EXPECTED)),
    "uint16": (BYTES.astype(np.uint16) * 257, EXPECTED),
    "big-endian": (BYTES.astype(">u2") * 257, EXPECTED),
    "bool": (WHITE, np.repeat(WHITE[..., None], 3, -1) * 2.0 - 1),
    "0 and 1": (WHITE.astype(np.uint8), np.repeat(WHITE[..., None], 3, -1) * 2.0 - 1),
    "0 to 1": (BYTES / 255, EXPECTED),
    "-1 to 1": (EXPECTED, EXPECTED),
    "float16": ((BYTES / 255).astype(np.float16), EXPECTED),
    "tensor": (Tensor(first(EXPECTED)), EXPECTED),
    "tensors": (Tensor(first(BYTES)[None]), EXPECTED),
    "bfloat16": (Tensor(first(EXPECTED), is_bfloat16=True), EXPECTED),
    "tensor, channels last": (Tensor(BYTES[None]), EXPECTED),
    "pillow": (Image.fromarray(BYTES), EXPECTED),
    "pillow L": (Image.fromarray(GREY), GREY_EXPECTED),
    "pillow LA": (Image.merge("LA", [Image.fromarray(GREY)] * 2), None),
    "pillow 16 bits": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY_EXPECTED),
    "pillow 32 bits": (Image.fromarray(GREY.astype(np.int32) * 257), GREY_EXPECTED),
    "pillow palette": (palette(), np.asarray(palette().convert("RGB")) / 127.5 - 1),
    "pillow CMYK": (Image.new("CMYK", (24, 16)), np.ones_like(EXPECTED)),
    "pillow bilevel": (
        Image.fromarray(WHITE),
        np.repeat(WHITE[..., None], 3, -1) * 2.0 - 1,
    ),
    "dark pillow": (Image.new("L", (24, 16), 1), np.full_like(EXPECTED, 2 / 255 - 1)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_images_of_every_kind_mean_the_same(kind):
    value, expected = TAKEN[kind]
    x = pixels.images(value)
    assert (x.shape, x.dtype) == ((1, 16, 24, 3), np.float32)
    if expected is None:  # grey g with alpha g on white
        grey = GREY / 255
        expected = np.repeat((grey * grey + 1 - grey)[..., None], 3, -1) * 2 - 1
        np.testing.assert_allclose(x[0], expected, atol=2 / 255)
    else:
        np.testing.assert_allclose(x[0], expected, atol=1e-3 if kind == "float16" else 1e-6)
    np.testing.assert_array_equal(pixels.images([value, value]), np.concatenate([x, x]))


MASKS = {
    "bool": WHITE,
    "bool with axes": WHITE[None, :, :, None],
    "uint8": GREY,
    "0 and 255": WHITE * np.uint8(255),
    "0 and 1": WHITE.astype(np.uint8),
    "whole numbers": WHITE.astype(np.int64),
    "whole numbers to 255": WHITE.astype(np.int32) * 255,
    "floats": WHITE * 0.7,
    "floats to 255": WHITE * np.float32(255),
    "uint16": GREY.astype(np.uint16) * 257,
    "uint16 of 0 and 1": WHITE.astype(np.uint16),
    "colours": np.repeat(GREY[..., None], 3, -1),
    "alpha": np.concatenate([np.repeat(WHITE[..., None], 3, -1) * np.uint8(1), OPAQUE], -1),
    "painted on nothing": np.concatenate([OPAQUE, WHITE[..., None] * np.uint8(255)], -1),
    "tensor": Tensor(WHITE[None].astype(np.float32)),
    "tensors": Tensor(WHITE[None, None]),
    "bfloat16": Tensor(WHITE.astype(np.float32), is_bfloat16=True),
    "pillow": Image.fromarray(GREY),
    "pillow bilevel": Image.fromarray(WHITE),
    "pillow of 0 and 1": Image.fromarray(WHITE.astype(np.uint8)),
    "pillow 16 bits": Image.fromarray(GREY.astype(np.uint16) * 257),
    "pillow 32 bits": Image.fromarray(WHITE.astype(np.int32)),
    "pillow floats": Image.fromarray(WHITE.astype(np.float32)),
    "pillow palette": Image.fromarray(GREY).convert("P"),
    "pillow RGBA": Image.fromarray(GREY).convert("RGBA"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind_mean_the_same(kind):
    x = pixels.masks(MASKS[kind])
    assert (x.shape, x.dtype) == ((1, 16, 24, 1), np.float32)
    np.testing.assert_array_equal(x[0, ..., 0], WHITE)
    np.testing.assert_array_equal(pixels.masks([MASKS[kind], WHITE])[1, ..., 0], WHITE)


REFUSED = [
    (pixels.images, BYTES.astype(int), "the image has type int64; expected uint8"),
    (pixels.images, BYTES.astype(np.float32), r"floats from 0 to 255; expected .*\[0, 1\]"),
    (pixels.images, np.full((8, 8, 3), np.nan), "floats from nan to nan"),
    (pixels.images, BYTES.astype(np.uint16), "largest value is 25. of 65535; store uint8"),
    (pixels.images, np.zeros((8, 8, 5), np.uint8), r"shape \(1, 8, 8, 5\); expected \[H, W, 3\]"),
    (pixels.images, np.zeros((0, 8, 3), np.uint8), r"shape \(1, 0, 8, 3\)"),
    (pixels.images, np.zeros(3, np.uint8), r"shape \(3,\)"),
    (pixels.images, [BYTES, BYTES[:8]], "the images differ in size; give images of one size"),
    (pixels.images, [], "the image is an empty list"),
    (pixels.images, [[[1], [2, 3]]], "the image cannot be read as one array"),
    (pixels.images, np.array([None, {}], object), "has type object; expected uint8"),
    (pixels.images, np.array(["a"]), "has type <U1; expected uint8 .* Pillow pictures or paths"),
    (pixels.images, EXPECTED[..., [0, 1, 2, 2]], "alpha channel and floats below 0"),
    (pixels.images, 7, r"shape \(\)"),
    (pixels.images, "nowhere.png", r"nowhere\.png: No such file"),
    (pixels.images, Image.new("F", (8, 8)), "mode F have no known range"),
    (pixels.masks, Image.new("LAB", (8, 8)), "the mask cannot be used: "),
    (pixels.masks, np.full((8, 8), np.nan), "the mask has type float64 and values from nan to nan"),
    (pixels.masks, EXPECTED[..., 0], "the mask has type float32 and values from -"),
    (pixels.masks, GREY.astype(int), "the mask has type int64 and values from 0 to 25"),
    (pixels.masks, np.zeros((8, 8, 5), np.uint8).T[0, 0], r"shape \(8,\); expected \[H, W\]"),
    (pixels.masks, [WHITE, WHITE[:8]], "the masks differ in size; give masks of one size"),
    (pixels.masks, ["nowhere.png"], r"nowhere\.png: No such file"),
]


@pytest.mark.parametrize(
    ("function", "value", "words"), REFUSED, ids=lambda v: getattr(v, "__name__", str(v)[:30])
)
def test_everything_else_is_one_error(function, value, words):
    with pytest.raises(ValueError, match=words):
        function(value)


def test_a_picture_means_what_its_array_means():
    for array in (GREY, BYTES, (GREY % 2).astype(np.uint16), GREY.astype(np.uint16) * 257):
        picture = pixels.images(Image.fromarray(array))
        np.testing.assert_allclose(picture, pixels.images(array), atol=1e-6)
    with pytest.raises(ValueError, match="the image cannot be used: it has 16 bits, but"):
        pixels.images(Image.fromarray(GREY.astype(np.uint16)))


def test_the_floats_of_a_call_share_one_range():
    bright = np.full((8, 8, 3), 0.5, np.float32)
    dark = np.full((8, 8, 3), -0.5, np.float32)
    np.testing.assert_array_equal(pixels.images([bright, dark])[:, 0, 0, 0], [0.5, -0.5])
    np.testing.assert_array_equal(pixels.images([bright, bright])[:, 0, 0, 0], [0, 0])


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_orientation_turns_the_photo_and_its_mask(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(BYTES).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(WHITE).save(tmp_path / "mask.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        for value in (tmp_path / "a.png", str(tmp_path / "a.png"), opened):
            turned = pixels.images(value)[0]
            np.testing.assert_allclose(turned, np.rot90(EXPECTED, turns), atol=1e-6)
    mask = pixels.masks(tmp_path / "mask.png")[0, ..., 0]
    np.testing.assert_array_equal(mask, np.rot90(WHITE, turns))


def test_damaged_exif_data_are_said_and_not_taken_for_upright(tmp_path):
    path = tmp_path / "set" / "a.jpg"
    path.parent.mkdir()
    Image.fromarray(BYTES).convert("RGB").save(path, exif=b"Exif\0\0damaged")
    message = "EXIF data are damaged .* save the picture again"
    with pytest.raises(ValueError, match=message):
        pixels.images(path)
    with pytest.raises(ValueError, match=rf"a\.jpg: its {message}"):
        sets.load(str(path.parent))


def test_a_mask_that_selects_nothing_is_hinted_at():
    red = np.zeros((4, 4, 3), np.uint8)
    red[:, :2, 0] = 255  # 0.299 as grey, which is below half
    networks = types.SimpleNamespace(inpaints=False, vae=types.SimpleNamespace(factor=8))
    image = np.zeros((1, 4, 4, 3), np.float32)
    for value, hints in ((red, 1), (red[..., 0], 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            image_arguments.check_pair(image, None, pixels.masks(value), networks)
        assert ["selects no pixel" in str(one.message) for one in caught] == [True] * hints


@pytest.mark.parametrize("ending", ["png", "pgm", "tif"])
def test_files_of_sixteen_bits_are_not_clipped(tmp_path, ending):
    path = tmp_path / "set" / f"a.{ending}"
    path.parent.mkdir()
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    np.testing.assert_allclose(pixels.images(path)[0], GREY_EXPECTED, atol=1e-6)
    np.testing.assert_array_equal(pixels.masks(path)[0, ..., 0], WHITE)
    np.testing.assert_array_equal(sets.load(str(path.parent)).images[0, ..., 0], GREY)


@pytest.mark.parametrize(
    "kind", ["uint8", "uint16", "bool", "0 and 1", "0 to 1", "-1 to 1", "alpha"]
)
def test_a_data_set_means_what_a_call_means(tmp_path, kind):
    value, expected = TAKEN[kind]
    np.savez(tmp_path / "set.npz", images=np.stack([value] * 3))
    stored = sets.load(str(tmp_path / "set.npz")).images
    np.testing.assert_array_equal(
        np.broadcast_to(stored, (3, 16, 24, 3)), np.rint((expected + 1) * 127.5)[None].repeat(3, 0)
    )


# files


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
FOREIGN = {"eps": EPS, "pdf": b"%PDF-1.4\n", "xbm": b"#define a_width 8\n#define a_height 8\n"}


@pytest.mark.parametrize("kind", FOREIGN)
def test_only_safe_formats_are_opened_whatever_a_file_is_called(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("subprocess.Popen", None)  # Pillow would start Ghostscript
    path = tmp_path / "set" / "0.png"
    path.parent.mkdir()
    path.write_bytes(FOREIGN[kind])
    for read in (
        picture_file.read,
        pixels.images,
        pixels.masks,
        lambda p: sets.load(str(p.parent)),
    ):
        with pytest.raises(ValueError, match=r"0\.png: not a picture in a format that is read"):
            read(path)


@pytest.mark.parametrize("make", [os.mkfifo, pathlib.Path.mkdir])
def test_what_is_no_regular_file_is_refused_unopened(tmp_path, make):
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: not a regular file"):
        pixels.images(tmp_path / "a.png")


def test_a_link_to_a_device_is_refused_unopened(tmp_path):
    (tmp_path / "a.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"a\.png: not a regular file"):
        pixels.images(tmp_path / "a.png")


def test_names_cannot_command_the_terminal(tmp_path):
    path = tmp_path / "a\x1b[2J\u202e.png"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\\x1b\[2J\\u202e\.png: an empty file"):
        pixels.images(path)


def test_threads_together_decode_a_bounded_number_of_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_file, "_MOST_PIXELS", 1000)
    lock, now, peak = threading.Lock(), [0], [0]
    opaque = pillow.opaque

    def watched(image, mode, binary):
        with lock:
            now[0] += image.width * image.height
            peak[0] = max(peak[0], now[0])
        time.sleep(0.002)
        with lock:
            now[0] -= image.width * image.height
        return opaque(image, mode, binary)

    monkeypatch.setattr(pillow, "opaque", watched)
    for i in range(200):
        Image.new("L", (20, 20), i).save(tmp_path / f"{i:03}.png")
    loaded = sets.load(str(tmp_path), image_size=4, channels=1)
    assert len(loaded.images) == 180
    assert 400 < peak[0] <= 1000
    monkeypatch.setattr(picture_file, "_MOST_PIXELS", 100)  # a larger one goes alone
    peak[0] = 0
    assert len(sets.load(str(tmp_path), image_size=4, channels=1).images) == 180
    assert peak[0] == 400


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tif", "webp", "bmp", "ppm", "jp2"])
def test_damaged_pictures_are_read_or_one_error_that_names_the_file(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(BYTES).save(path)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(len(content))
    outcomes = []
    for _ in range(60):
        damaged = content.copy()
        damaged[rng.integers(0, len(content), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged[: rng.integers(1, len(content) + 1)].tobytes())
        try:
            outcomes.append(sets.load(str(tmp_path), image_size=8, channels=3).images.dtype)
        except ValueError as error:
            outcomes.append(path.name in str(error))
    assert set(outcomes) <= {np.dtype(np.uint8), True}
