# SPDX-License-Identifier: MIT
"""Folders of captioned pictures give each picture its caption, and one error for all faults."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import caption_folder, source

RNG = np.random.default_rng(0)


def save(path: pathlib.Path, height: int = 6, width: int = 6) -> np.ndarray:
    image = RNG.integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def describe(folder: pathlib.Path, captions: dict[str, str], key: str = "text") -> None:
    lines = [json.dumps({"file_name": name, key: text}) for name, text in captions.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def make(folder: pathlib.Path, names: list[str]) -> dict[str, np.ndarray]:
    """Pictures by their captions "a picture of <name>"."""
    describe(folder, {name: f"a picture of {name}" for name in names})
    return {f"a picture of {name}": save(folder / name) for name in names}


def open_split(folder, split="train", image_size=None, channels=None) -> caption_folder.Captioned:
    return caption_folder.open_split(folder, split, image_size=image_size, channels=channels)


def by_caption(captioned: caption_folder.Captioned) -> dict[str, np.ndarray]:
    data = source.read_all(captioned.source)
    assert len(data.labels) == len(captioned.captions)
    return {captioned.captions[label]: data.images[i] for i, label in enumerate(data.labels)}


def error_of(folder: pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the caller looks at the words
        open_split(folder)
    return str(caught.value)


def test_captions_in_other_forms_are_told(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a cat")
    assert "no metadata.jsonl, but 2 .txt files; if they hold the captions" in error_of(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\n")
    assert "no metadata.jsonl, but a metadata.csv" in error_of(tmp_path)
    describe(tmp_path, {"sub\\a.png": "a cat"})
    assert "(folders are set apart by /)" in error_of(tmp_path)


# layouts


@pytest.mark.parametrize("where", ["", "a/", "a/b c/"])
def test_every_picture_comes_with_its_own_caption(tmp_path, where):
    stored = make(tmp_path, [f"{where}{name}.png" for name in ("cat", "ant", "dog")])
    loaded = by_caption(open_split(tmp_path))
    assert loaded.keys() == stored.keys()
    for caption, image in stored.items():
        np.testing.assert_array_equal(loaded[caption], image)


def test_a_tenth_is_held_out_whatever_the_order_of_the_lines(tmp_path):
    names = [f"{i:02}.png" for i in range(20)]
    make(tmp_path, names)
    train, test = open_split(tmp_path).captions, open_split(tmp_path, "test")
    assert test.captions == ["a picture of 09.png", "a picture of 19.png"]
    assert sorted(train + test.captions) == [f"a picture of {name}" for name in names]

    describe(tmp_path, {name: f"a picture of {name}" for name in names[::-1]})
    assert open_split(tmp_path, "test").captions == test.captions
    assert test.source.read([1])[1].tolist() == [1]  # numbered within the split


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_split_folders_are_taken_as_given(tmp_path, test_name):
    train = make(tmp_path / "train", ["1.png", "more/2.png"])
    test = make(tmp_path / test_name, ["3.png"])
    assert by_caption(open_split(tmp_path)).keys() == train.keys()
    loaded = by_caption(open_split(tmp_path, "test"))
    np.testing.assert_array_equal(loaded["a picture of 3.png"], test["a picture of 3.png"])
    assert loaded.keys() == test.keys()


def test_a_train_folder_alone_gives_a_tenth_to_testing(tmp_path):
    make(tmp_path / "train", [f"{i}.png" for i in range(10)])
    assert len(open_split(tmp_path).captions) == 9
    assert open_split(tmp_path, "test").captions == ["a picture of 9.png"]


def test_metadata_beside_a_train_folder_is_refused_as_unclear(tmp_path):
    make(tmp_path, ["train/1.png"])
    assert "rename the folder train" in error_of(tmp_path)


def test_byte_order_marks_blank_lines_and_other_keys_are_passed_over(tmp_path):
    save(tmp_path / "ä.png")
    save(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_bytes(
        b'\xef\xbb\xbf{"file_name": "\xc3\xa4.png", "text": "one\xe2\x80\xa8two", "n": 1}\r\n'
        b'\r\n  \n{"file_name": "./b.png", "caption": "no", "text": "yes"}'
    )
    assert open_split(tmp_path).captions == ["yes", "one\u2028two"]


def test_caption_stands_in_for_text(tmp_path):
    save(tmp_path / "a.png")
    describe(tmp_path, {"a.png": "a cat"}, key="caption")
    assert open_split(tmp_path).captions == ["a cat"]


def test_hidden_pictures_and_other_files_need_no_caption(tmp_path):
    make(tmp_path, ["a.png"])
    save(tmp_path / ".b.png")
    save(tmp_path / ".checkpoints" / "c.png")
    (tmp_path / "readme.txt").write_text("hello")
    assert len(open_split(tmp_path).captions) == 1


# sizes


def test_pictures_are_resized_to_one_size_or_must_have_it(tmp_path):
    describe(tmp_path, {"1.png": "one", "2.png": "two"})
    save(tmp_path / "1.png", 6, 8)
    save(tmp_path / "2.png", 5, 5)
    assert "2 different sizes: 8x6 (1 pictures), 5x5" in error_of(tmp_path)
    assert open_split(tmp_path, image_size=4).source.image_shape == (4, 4, 3)


def test_grey_pictures_get_three_channels_when_asked(tmp_path):
    describe(tmp_path, {"1.png": "one"})
    Image.new("L", (4, 4), 7).save(tmp_path / "1.png")
    assert open_split(tmp_path).source.image_shape == (4, 4, 1)
    assert (by_caption(open_split(tmp_path, channels=3))["one"] == np.full((4, 4, 3), 7)).all()


@pytest.mark.parametrize(("split", "size", "words"), [("all", 4, "split 'all'"), ("test", 0, "0;")])
def test_impossible_requests_are_refused(tmp_path, split, size, words):
    make(tmp_path, ["a.png"])
    with pytest.raises(ValueError, match=words):
        open_split(tmp_path, split, image_size=size)


# faults


def test_missing_or_empty_metadata_shows_what_it_must_look_like(tmp_path):
    example = '{"file_name": "birds/1.png", "text": "a red bird"}'
    assert f"{tmp_path} has no metadata.jsonl; expected" in error_of(tmp_path)
    assert example in error_of(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    assert "metadata.jsonl is empty" in error_of(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "metadata.jsonl").unlink()
    assert f"{tmp_path / 'train'} has no metadata.jsonl" in error_of(tmp_path)
    assert "no folder" in error_of(tmp_path / "nowhere")


def test_the_first_five_images_without_a_caption_are_listed(tmp_path):
    make(tmp_path, ["a.png"])
    for i in range(7):
        save(tmp_path / "more" / f"{i}.png")
    error = error_of(tmp_path)
    assert "has 7 faults" in error
    listed = "\n".join(["", *(f"    'more/{i}.png'" for i in range(5))])
    assert error.endswith("  7 images without a caption, the first 5:" + listed)


def test_captions_without_an_image_are_listed(tmp_path):
    make(tmp_path, ["a.png"])
    describe(tmp_path, {"a.png": "here", "b.png": "gone", "c" * 300: "too long for a file"})
    (tmp_path / "b.png").mkdir()
    assert "2 captions without an image:\n    'b.png'\n    'ccc" in error_of(tmp_path)


def test_images_that_cannot_be_opened_are_listed_even_if_a_size_is_given(tmp_path):
    make(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "c.png").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="2 images that cannot be opened:") as caught:
        open_split(tmp_path, image_size=4, channels=3)
    assert "'a.png': an empty file\n    'c.png': not a picture" in str(caught.value)


def test_all_kinds_of_faults_come_in_one_error(tmp_path):
    make(tmp_path, ["good.png", "broken.png", "gone.png"])
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "gone.png").unlink()
    save(tmp_path / "silent.png")
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write("no JSON\n")
    error = error_of(tmp_path)
    assert f"{tmp_path} has 4 faults" in error
    for kind in (
        "1 lines of metadata.jsonl that cannot be used:\n    line 4: it is not valid JSON",
        "1 images without a caption:\n    'silent.png'",
        "1 captions without an image:\n    'gone.png'",
        "1 images that cannot be opened:\n    'broken.png': an empty file",
    ):
        assert kind in error


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", "JSON list; expected an object"),
        ('{"text": "a"}', 'it has no "file_name"'),
        ('{"file_name": "a.png"}', 'it has no "text"'),
        ('{"file_name": "a.png", "text": null, "caption": "a"}', '"text" is of type NoneType'),
        ('{"file_name": ["a.png"], "text": "a"}', '"file_name" is of type list'),
        ('{"file_name": "a.png", "text": " "}', '"text" is empty'),
        ('{"file_name": "a.png", "text": "a", "text": "b"}', "'text' is given twice"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "half of a surrogate pair"),
        ('{"file_name": "a\\u0000.png", "text": "a"}', "null character"),
        (json.dumps({"file_name": "a.png", "text": "a" * 4001}), "4001 characters; at most 4000"),
        (json.dumps({"file_name": "a" * 1001, "text": "a"}), "1001 characters; at most 1000"),
        (json.dumps({"file_name": "a.png", "text": "a" * 2**20}), "at most 1048576"),
        ('{"file_name": "good.png", "text": "b"}', "'good.png' has a caption already"),
        ('{"file_name": "./good.png", "text": "b"}', "'good.png' has a caption already"),
    ],
)
def test_lines_that_hold_no_caption_are_named(tmp_path, line, words):
    make(tmp_path, ["good.png"])
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write("\n" + line)  # after a blank line, which counts
    error = error_of(tmp_path)
    assert "1 lines of metadata.jsonl that cannot be used:\n    line 3: " in error
    assert words in error


def test_names_cannot_command_the_terminal(tmp_path):
    make(tmp_path, ["a\x1b[2J.png"])
    (tmp_path / "a\x1b[2J.png").write_bytes(b"")
    assert "'a\\x1b[2J.png': an empty file" in error_of(tmp_path)
    assert "\x1b" not in error_of(tmp_path)


# escapes


@pytest.mark.parametrize("name", ["../out.png", "in/../../out.png", "in/../in.png", "{}/out.png"])
def test_paths_out_of_the_folder_are_refused(tmp_path, name):
    save(tmp_path / "out.png")
    make(tmp_path / "set", ["in.png", "in/1.png"])
    describe(tmp_path / "set", {"in/1.png": "one", "in.png": "two", name.format(tmp_path): "no"})
    assert "line 3: " in error_of(tmp_path / "set")
    assert "is not a plain path within the folder" in error_of(tmp_path / "set")


def test_links_out_of_the_folder_are_refused(tmp_path):
    save(tmp_path / "out" / "1.png")
    describe(tmp_path / "set", {"file.png": "a", "folder/1.png": "b"})
    (tmp_path / "set" / "file.png").symlink_to(tmp_path / "out" / "1.png")
    (tmp_path / "set" / "folder").symlink_to(tmp_path / "out")
    error = error_of(tmp_path / "set")
    assert "line 1: 'file.png' is a link out of the folder" in error
    assert "line 2: 'folder/1.png' is a link out of the folder" in error


def test_links_within_the_folder_and_to_the_folder_are_followed(tmp_path):
    make(tmp_path / "set", ["a.png"])
    (tmp_path / "set" / "b.png").symlink_to("a.png")
    describe(tmp_path / "set", {"a.png": "one", "b.png": "two"})
    (tmp_path / "link").symlink_to(tmp_path / "set")
    loaded = by_caption(open_split(tmp_path / "link"))
    np.testing.assert_array_equal(loaded["one"], loaded["two"])
