# SPDX-License-Identifier: MIT
"""The folder of a run, apart from the training in it: its name, and how it is emptied."""

import shutil
from pathlib import Path

import pytest

from jaxgen.runs import run_folder


def test_a_folder_that_is_emptied_stays_a_run_until_the_last(tmp_path, monkeypatch):
    for name in ("config.json", "data.json", "metrics.jsonl", "zero.json"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoints").mkdir()
    gone = []
    monkeypatch.setattr(Path, "unlink", lambda path: gone.append(path.name))
    monkeypatch.setattr(shutil, "rmtree", lambda path: gone.append(path.name))
    run_folder.clear(tmp_path)
    assert len(gone) == 5
    assert gone[-1] == "config.json"


def test_a_name_that_is_not_utf8_is_refused():
    with pytest.raises(ValueError, match="not a name in UTF-8; use another --run-dir"):
        run_folder.check_name(Path("runs/bad\udcff"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("link", "it is a broken link"), ("file/run", "Not a directory"), ("x" * 300, "too long")],
)
def test_a_folder_that_cannot_be_made_says_why(tmp_path, name, reason):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"cannot be made: .*{reason}; use another --run-dir"):
        run_folder.make(tmp_path / name)
