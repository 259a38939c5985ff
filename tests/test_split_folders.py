# SPDX-License-Identifier: MIT
"""No folder is misread silently: splits by any name, what was skipped, and what is unclear."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import caption_folder, picture_file, sets, split_folders
from jaxgen.runs import command_line, plan

RNG = np.random.default_rng(0)


def save(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8)).save(path)


def make(root: pathlib.Path, *names: str) -> None:
    for name in names:
        save(root / name)


def split_of(root: pathlib.Path) -> list[int]:
    return [sets.open_source(str(root), split).num_examples for split in ("train", "test")]


PAIRS = [
    ("train", "test"), ("training", "testing"), ("Train", "Test"), ("TRAIN", "TEST"),
    ("train", "val"), ("train", "valid"), ("Training", "Validation"), ("train", "eval"),
    ("train", "dev"), ("train_set", "test_set"), ("TrainSet", "TestSet"), ("trainset", "testset"),
    ("seg_train", "seg_test"), ("train2017", "val2017"), ("train-images", "val-images"),
    ("cifar10_train", "cifar10_test"), ("imagesTrain", "imagesTest"), ("01_train", "02_test"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_splits_are_known_by_any_usual_name(tmp_path, train, test):
    make(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{train}/b/3.png", f"{test}/b/4.png")
    opened = [sets.open_source(str(tmp_path), split) for split in ("train", "test")]
    assert [one.num_examples for one in opened] == [3, 1]
    assert opened[0].class_names == opened[1].class_names == ("a", "b")
    assert f"from the folder {train}" in opened[0].description
    assert f"from the folder {test}" in opened[1].description


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_captioned_splits_go_by_the_same_names(tmp_path, train, test):
    for folder, name in ((train, "1.png"), (test, "2.png")):
        make(tmp_path, f"{folder}/{name}")
        line = f'{{"file_name": "{name}", "text": "{name}"}}\n'
        (tmp_path / folder / "metadata.jsonl").write_text(line)
    for split, caption in (("train", "1.png"), ("test", "2.png")):
        opened = caption_folder.open_split(tmp_path, split, image_size=None, channels=3)
        assert opened.captions == [caption]


def test_of_several_held_out_folders_one_is_read_and_the_others_are_named(tmp_path):
    make(tmp_path, "train/a/1.png", "train/a/2.png", "val/a/3.png", "test/a/4.png", "5.png")
    make(tmp_path, "extra/6.png")
    assert split_of(tmp_path) == [2, 1]
    line = sets.open_source(str(tmp_path), "test").description
    assert "from the folder test" in line
    assert "beside the splits and not read: extra, val, 1 pictures" in line


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/1.png", "bus/2.png"], "train, bus, and it is not clear whether they are splits"),
        (["train/a/1.png", "training/a/2.png"], "only one folder can be for training"),
        (["train/1.png", "test/1.png", "a_train/1.png", "a_test/1.png"], "only one folder can be"),
        (["test/a/1.png"], "there is no folder train beside it"),
        (["cats/1.png", "val/2.png"], "val, cats, and it is not clear whether they are splits"),
        (["set/train/a/1.png", "set/test/a/2.png"], "set holds the splits of a set; give that"),
        (["a/train/1.png", "a/val/2.png", "b/train/3.png"], "put train and test outermost"),
        (["train/a/1.png", "test/1.png"], r"classes \[\] and the train folder \['a'\]"),
    ],
)
def test_folders_that_could_mean_two_things_are_refused(tmp_path, names, words):
    make(tmp_path, *names)
    with pytest.raises(ValueError, match=words):
        sets.open_source(str(tmp_path), "test", image_size=4, channels=3)


@pytest.mark.parametrize(
    "names", [["freight_train", "test_tube"], ["valid", "invalid"], ["trainer", "contest"]]
)
def test_classes_that_only_sound_like_splits_are_classes(tmp_path, names):
    make(tmp_path, *(f"{name}/{i}.png" for name in names for i in range(10)))
    assert sets.open_source(str(tmp_path)).class_names == tuple(sorted(names))


def test_words_of_a_name_are_divided_where_a_reader_would():
    for name in ("train", "Train_Set", "trainImages", "training-data", "train 1"):
        assert split_folders.is_train(name), name
    for name in ("bullet_train", "terrain", "trainer", "train_test", "test", ""):
        assert not split_folders.is_train(name), name


# what was read


def test_the_description_counts_classes_and_what_was_skipped(tmp_path):
    make(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)))
    for name in ("cat/1.heic", "cat/2.HEIC", "dog/notes.txt", "labels.csv", "dog/.hidden.png"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "readme.md").write_text("?")
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert sets.open_source(str(tmp_path)).description == (
        "train 18 images of 2 classes (cat 9, dog 9); a tenth held out for testing; skipped: "
        "2 .heic, 1 broken link, 1 special file, 1 .md, 1 hidden, 1 .txt, 1 .csv; "
        "the folder docs holds no pictures"
    )


@pytest.mark.parametrize("ending", ["heic", "psd", "eps", "tga", "svg"])
def test_a_class_of_pictures_that_cannot_be_read_is_named(tmp_path, ending):
    make(tmp_path, "cat/1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / f"1.{ending}").write_bytes(b"?")
    words = rf"class \S*dog has no picture that can be read, only 1 \.{ending}; convert"
    with pytest.raises(ValueError, match=words):
        sets.open_source(str(tmp_path))


@pytest.mark.parametrize(
    "ending", ["jfif", "jpe", "JPG", "webp", "jp2", "tiff", "ppm", "bmp", "dib"]
)
def test_pictures_are_read_whatever_their_usual_ending(tmp_path, ending):
    save(tmp_path / "a" / f"1.{ending}")
    assert sets.load(str(tmp_path)).images.shape == (1, 6, 6, 3)


def test_endings_are_those_of_the_formats_that_this_pillow_reads():
    endings = picture_file.suffixes()
    assert {".png", ".jfif", ".webp", ".gif", ".apng"} <= endings
    assert not endings & {".eps", ".ps", ".psd", ".pdf", ".h5", ".wmf", ".heic"}


def test_linked_folders_are_followed_and_read_once(tmp_path):
    make(tmp_path / "elsewhere", *(f"{i}.png" for i in range(3)))
    make(tmp_path / "set", "cat/1.png", "dog/1.png")
    (tmp_path / "set" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "round").symlink_to(tmp_path / "set" / "cat")
    opened = sets.open_source(str(tmp_path / "set"))
    assert opened.num_examples == 5
    assert "skipped: 1 link to a folder read already" in opened.description


def test_a_link_that_leads_in_a_circle_is_a_broken_one(tmp_path):
    make(tmp_path / "set", "cat/1.png", "cat/2.png", "dog/1.png")
    for place in ("set/cat/circle.png", "set/circle"):
        (tmp_path / place).symlink_to(tmp_path / place)
    opened = sets.open_source(str(tmp_path / "set"))
    assert opened.num_examples == 3
    assert "1 broken link" in opened.description


@pytest.mark.parametrize("target", [".", "..", "cat"])
def test_a_link_to_a_folder_around_a_class_brings_no_other_class_into_it(tmp_path, target):
    make(tmp_path / "set", "cat/1.png", "cat/2.png", "dog/1.png")
    (tmp_path / "set/cat/around").symlink_to(tmp_path / "set" / target)
    opened = sets.open_source(str(tmp_path / "set"))
    assert opened.num_examples == 3
    assert "1 link to a folder read already" in opened.description


@pytest.mark.parametrize(
    ("link", "target", "place"),
    [
        ("cat/more", "dog", "dog"),
        ("cat/more", "dog/old", "dog/old"),
        ("puppy", "dog/old", "dog/old"),
        ("puppy", "dog", "dog"),
        ("cat/2.png", "dog/1.png", "dog"),
        ("cat/2.png", "dog/old/1.png", "dog/old"),
    ],
)
def test_a_link_that_puts_pictures_into_two_classes_is_refused(tmp_path, link, target, place):
    make(tmp_path, "cat/1.png", "dog/1.png", "dog/old/1.png")
    (tmp_path / link).symlink_to(tmp_path / target)
    classes = f"{'dog and puppy' if link == 'puppy' else '(cat and dog|dog and cat)'}"
    with pytest.raises(
        ValueError, match=rf"by a link, pictures in .*{place} .* classes {classes};"
    ):
        sets.open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["metadata.jsonl", "train"])
def test_captions_are_not_read_through_links_out_of_the_folder(tmp_path, name):
    make(tmp_path / "out", "1.png")
    (tmp_path / "out" / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a"}')
    make(tmp_path / "set", "1.png")
    target = tmp_path / "out" if name == "train" else tmp_path / "out" / name
    (tmp_path / "set" / name).symlink_to(target)
    with pytest.raises(ValueError, match=rf"{name} is a link out of the folder"):
        caption_folder.open_split(tmp_path / "set", "train", image_size=None, channels=None)


def test_a_pipe_for_metadata_is_refused_unopened(tmp_path):
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match=r"has no metadata\.jsonl"):
        caption_folder.open_split(tmp_path, "train", image_size=None, channels=None)


@pytest.mark.parametrize(("high", "white"), [(0, 0), (1, 255), (2, 2)])
def test_files_of_only_0_and_1_do_not_train_nearly_black(tmp_path, high, white):
    for i in range(20):
        Image.fromarray(np.eye(4, dtype=np.uint8) * np.uint8(high)).save(tmp_path / f"{i:02}.png")
    train, test = (sets.open_source(str(tmp_path), split) for split in ("train", "test"))
    examples = plan.read_examples(command_line.RunOptions(data="shapes"), train, test)
    np.testing.assert_array_equal(examples.images[0, ..., 0], np.eye(4) * white)
    assert examples.description == f"{train.description} | {test.description}"
