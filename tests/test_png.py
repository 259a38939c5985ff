# SPDX-License-Identifier: MIT
"""PNG files with text: what is written is read back, by us and by the format's own rules."""

import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxgen.pictures import images, parameters

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def chunks(data):
    """(type, content) of every chunk, by the layout of the PNG specification."""
    parts, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert check == zlib.crc32(kind + content)
        parts.append((kind, content))
        at += 12 + length
    return parts


def test_text_and_pixels_survive(tmp_path):
    story = {"prompt": "zwölf 猫 😀\nin two lines", "seed": 7, "guidance_scale": 7.5, "empty": ""}
    images.save(tmp_path / "new" / "a.png", PICTURE, story)
    expected = {key: str(value) for key, value in story.items()}
    assert images.read_text(tmp_path / "new" / "a.png") == expected
    with Image.open(tmp_path / "new" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), PICTURE)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_text_is_stored_as_the_format_says(tmp_path):
    images.save(tmp_path / "a.png", PICTURE, {"prompt": "ü", "seed": 7})
    stored = chunks((tmp_path / "a.png").read_bytes())
    assert [content for kind, content in stored if kind == b"iTXt"] == [
        b"prompt\0\0\0\0\0" + "ü".encode()
    ]
    assert [content for kind, content in stored if kind == b"tEXt"] == [b"seed\x007"]


def test_text_that_is_no_unicode_is_replaced(tmp_path):
    images.save(tmp_path / "a.png", PICTURE, {"prompt": "a \ud800 b"})
    assert images.read_text(tmp_path / "a.png") == {"prompt": "a ? b"}


def test_a_key_that_png_forbids_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="1 to 79 ASCII"):
        images.save(tmp_path / "a.png", PICTURE, {"Größe": 1})
    assert not (tmp_path / "a.png").exists()


def eps(size: int) -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + bytes(size)


def text_bomb(size: int) -> bytes:
    """A PNG whose compressed text unpacks to more than any reader allows."""
    return png(1, 1, (b"zTXt", b"a\0\0" + zlib.compress(bytes(size))))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """The start of a grey PNG, with checksums, up to these chunks."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, inside in ((b"IHDR", header), *chunks):
        check = struct.pack(">I", zlib.crc32(kind + inside))
        content += struct.pack(">I", len(inside)) + kind + inside + check
    return content


@pytest.mark.parametrize("content", [b"", b"<html>", eps(99), text_bomb(10**8)])
def test_other_files_are_one_error_that_names_the_file(tmp_path, monkeypatch, content):
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started, Ghostscript above all
    path = tmp_path / "a\x1b[2J.png"
    path.write_bytes(content)
    for read in (images.read, images.read_text):
        with pytest.raises(ValueError, match=r"a\\x1b\[2J\.png cannot be read as a PNG picture"):
            read(path)


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own, which stops nobody
def test_more_pixels_than_pillow_takes_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    (tmp_path / "a.png").write_bytes(png(9500, 9500, (b"IDAT", bytes(99))))
    with pytest.raises(ValueError, match=r"a\.png cannot be read .*9500x9500 is over Pillow's"):
        images.read(tmp_path / "a.png")


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        images.read(tmp_path / "a.png")


# the text that other programs read


def test_settings_become_the_text_that_other_programs_read():
    settings = {
        "prompt": "a (cat:1.2), oil", "negative_prompt": "blur", "steps": 20, "seed": 7,
        "sampler": "dpmpp_2m_karras", "guidance_scale": 7.5, "guidance_rescale": 0.0,
        "clip_skip": 1, "width": 512, "height": 768, "model": "a, b", "strength": None,
        "software": "jaxgen 1",
    }  # fmt: skip
    assert parameters.text(settings) == (
        "a (cat:1.2), oil\nNegative prompt: blur\nSteps: 20, Sampler: DPM++ 2M Karras, "
        'CFG scale: 7.5, Seed: 7, Size: 512x768, Model: "a, b", Clip skip: 2, Version: jaxgen 1'
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [("euler_ancestral", "Euler a"), ("DDIMScheduler", "DDIM"), ("unipc", "UniPC"), ("x", "x")],
)
def test_samplers_are_named_as_other_programs_name_them(name, shown):
    assert parameters.text({"prompt": "", "sampler": name}) == f"\nSampler: {shown}"
