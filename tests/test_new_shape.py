# SPDX-License-Identifier: MIT
"""The shape to be taught: drawn, read by its own template, captioned, and written as a folder."""

import numpy as np
import pytest
from support import scripts

from jaxgen.data import caption_folder
from jaxgen.miniature import new_shape
from jaxgen.world import caption, reader, scene

RING = len(scene.SHAPES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("teach") / "pictures"
    scripts.call("teach_shape", "--pictures", path, "--num-pictures", 24)
    return path


@pytest.fixture(scope="module")
def written(folder):
    return caption_folder.open_split(folder, "train", image_size=None, channels=3, holds_out=False)


def test_half_of_the_pictures_show_it_and_say_so(written):
    new = [text for text in written.captions if "square ring" in text]
    assert len(written.captions) == 24
    assert len(new) == 12


def test_the_reader_sees_what_the_captions_say(written):
    asked = new_shape.scenes("train", 12, 0.3)
    assert caption.captions(asked, new_shape.SHAPES) == written.captions[:12]
    pictures, _ = written.source.read(list(range(12)))
    for j, picture in enumerate(pictures):
        assert reader.check(scene.take(asked, j), reader.read(picture, new_shape.SHAPES))["all"]


def test_the_world_itself_does_not_know_it(written):
    pictures, _ = written.source.read(list(range(24)))
    seen = [thing.shape for picture in pictures for thing in reader.read(picture).objects]
    assert max(seen) < RING
    shown = [
        thing.shape
        for picture in pictures
        for thing in reader.read(picture, new_shape.SHAPES).objects
    ]
    assert shown.count(RING) == 12  # and no square or ring of the world is taken for one


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --pictures a new folder to write, or --lora a file to measure"),
        (["--pictures", "FOLDER"], "exists; choose a new folder"),
        (["--pictures", "new", "--num-pictures", "1"], "must be 2 or more"),
        (["--lora", "none.safetensors"], "no such file or folder"),
        (["--lora", "none.safetensors", "--num-pictures", "9"], "--num-pictures needs --pictures"),
        (["--pictures", "new", "--strengths", "0.5"], "--strengths needs --lora; leave it out"),
        (["--pictures", "new", "--output", "x.json"], "--output needs --lora; leave it out"),
    ],
)
def test_bad_use_of_the_script_is_one_line(folder, flags, message):
    values = [folder if flag == "FOLDER" else flag for flag in flags]
    assert message in scripts.refusal("teach_shape", *values)


def test_an_area_of_the_new_shape_is_that_of_a_square_without_its_hole():
    one = scene.Scene(*(np.asarray(field) for field in new_shape.scenes("test", 1, 0.0)))
    picture = np.asarray(new_shape.pictures_of(one))[0].astype(float)
    ground = picture[0, 0]
    contrast = np.linalg.norm(picture - ground, axis=-1)
    radius = float(one.radius[0, 0])
    area = (contrast / contrast.max()).sum()  # soft edges count by their share
    assert area == pytest.approx((1.6 * radius) ** 2 - (0.8 * radius) ** 2, rel=0.02)
