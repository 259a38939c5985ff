# SPDX-License-Identifier: MIT
"""Files and folders appear whole under their name, or not at all."""

import os
import tempfile
from pathlib import Path

import pytest

from jaxgen import files
from jaxgen.data import sets


def test_a_file_appears_alone_and_complete_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_whole(path, lambda partial: partial.write_text("whole"))
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_appears_with_all_its_files(tmp_path):
    def write(partial):
        partial.mkdir()
        (partial / "a").write_text("1")
        assert not (tmp_path / "folder").exists()

    files.write_whole(tmp_path / "folder", write)
    assert (tmp_path / "folder" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, is_folder):
    old = tmp_path / "a"
    old.write_text("old")

    def write(partial):
        if is_folder:
            partial.mkdir()
            partial = partial / "inside"
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(old, write)
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_two_writers_of_one_name_do_not_share_a_temporary(tmp_path):
    path = tmp_path / "a"

    def write(partial):
        files.write_whole(path, lambda other: other.write_text("inner"))
        partial.write_text("outer")

    files.write_whole(path, write)
    assert path.read_text() == "outer"


def test_the_longest_name_that_a_file_can_have_can_be_written(tmp_path):
    path = tmp_path / ("a" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    files.write_whole(path, lambda partial: partial.write_text("x"))
    assert path.read_text() == "x"


def test_an_error_without_words_is_called_by_its_class():
    assert files.first_line(ValueError("\n one\ntwo")) == "one"
    assert files.first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(files.first_line(ValueError("x" * 1000))) == 200


def test_the_tilde_of_a_path_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expanded("~/a b/") == tmp_path / "a b"
    assert files.expanded("/a/~") == Path("/a/~")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "a path is empty; is the variable"), ("~nobody-here/x", "~nobody-here/x has no home")],
)
def test_what_is_no_path_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        files.expanded(text)
    with pytest.raises(ValueError, match=message):
        sets.open_source(text)
    assert files.existing(text) is None


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path):
    with (
        pytest.raises(ValueError, match="it cannot be read .PermissionError"),
        files.one_error(tmp_path),
    ):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("name", ["old", "new", "folder/of/new"])
def test_to_check_that_a_file_can_be_written_changes_nothing(tmp_path, name):
    (tmp_path / "old").write_text("old")
    files.check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "Is a directory"),
        ("file/new", "Not a directory"),
        ("file/of/new", "Not a directory"),
        ("a" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, name, reason):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"cannot be written .{reason}.; give another path"):
        files.check_writable(tmp_path / name)


def test_a_folder_in_which_nothing_can_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):  # root may write everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match="new cannot be written .Permission denied"):
        files.check_writable(tmp_path / "new")
