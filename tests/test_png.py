# SPDX-License-Identifier: MIT
"""PNG files with text chunks: what is written is read back, by us and by the format's own rules."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxgen.pictures import png

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def chunks(data):
    """(type, content) of every chunk, by the layout of the PNG specification."""
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert check == zlib.crc32(kind + content)
        found.append((kind, content))
        at += 12 + length
    return found


def test_text_and_pixels_survive(tmp_path):
    story = {"prompt": "zwölf 猫 😀\nin two lines", "seed": 7, "guidance_scale": 7.5, "empty": ""}
    png.write(tmp_path / "new" / "a.png", PICTURE, story)
    expected = {key: str(value) for key, value in story.items()}
    assert png.read_text(tmp_path / "new" / "a.png") == expected
    with Image.open(tmp_path / "new" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), PICTURE)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_text_is_stored_as_the_format_says(tmp_path):
    png.write(tmp_path / "a.png", PICTURE, {"prompt": "ü"})
    texts = [
        content for kind, content in chunks((tmp_path / "a.png").read_bytes()) if kind == b"iTXt"
    ]
    assert texts == [b"prompt\0\0\0\0\0" + "ü".encode()]


def test_text_that_is_no_unicode_is_replaced(tmp_path):
    png.write(tmp_path / "a.png", PICTURE, {"prompt": "a \ud800 b"})
    assert png.read_text(tmp_path / "a.png") == {"prompt": "a ? b"}


def test_a_key_that_png_forbids_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="1 to 79 ASCII"):
        png.write(tmp_path / "a.png", PICTURE, {"Größe": 1})
    assert not (tmp_path / "a.png").exists()
