# SPDX-License-Identifier: MIT
"""A disk without room: the error names the file; what was written before can be read."""

import errno
import os
import sys
import types
import warnings

import numpy as np
import pytest
from faults import cases
from PIL import Image

from jaxgen import files, script
from jaxgen.pictures import images
from jaxgen.runs import drawn, log


def noise(path):
    """Writes a picture that no compression makes small."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    images.save(path, Image.fromarray(pixels))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_whole(path, lambda partial: partial.write_bytes(bytes(2**13))),
        lambda path: files.write_whole(path, lambda partial: partial.write_text("x" * 2**13)),
        noise,
    ],
    ids=["bytes", "text", "picture"],
)
def test_a_file_for_which_there_is_no_room_is_named_and_nothing_of_it_is_left(tmp_path, write):
    path = tmp_path / "file.png"
    with cases.room_for(2**12), pytest.raises(files.NoRoomError) as refused:
        write(path)
    assert str(refused.value).startswith(f"{path} could not be written: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/other"), "No space left on device"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "Disk quota exceeded"),
        (ValueError("Failed writing: [OS error 28: ENOSPC No space left on device]"), "No space"),
    ],
)
def test_every_library_s_error_of_a_full_disk_names_the_file(tmp_path, error, reason):
    with (
        pytest.raises(files.NoRoomError, match=f"file could not be written: {reason}"),
        files.named_when_full(tmp_path),
        files.named_when_full(tmp_path / "file"),
    ):
        raise error


def test_other_errors_pass_as_they_are(tmp_path):
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/other")
    with pytest.raises(PermissionError) as refused, files.named_when_full(tmp_path):
        raise error
    assert refused.value is error


def log_steps(path, count):
    with log.json_lines(path) as (record, _):
        for step in range(1, count + 1):
            record(step, {"loss": 0.5})


def test_rows_before_the_disk_was_full_can_be_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with cases.room_for(100), pytest.raises(files.NoRoomError, match=r"metrics\.jsonl could not"):
        log_steps(path, 20)
    steps = [row["step"] for row in log.read_rows(path)]
    assert path.stat().st_size == 100  # the disk is used to its end, in the middle of a row
    assert steps == list(range(1, len(steps) + 1))
    assert steps


def test_writes_that_end_after_the_first_has_failed_say_nothing(monkeypatch):
    reported = []
    monkeypatch.delenv("JAXGEN_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "unraisablehook", lambda event: reported.append(str(event.exc_value)))

    async def read():
        raise ValueError("a damaged array")

    coroutine = read()
    late = [("Event loop is closed", None), ("a damaged array", coroutine), ("another", None)]

    def start():
        for text, thing in late:
            event = types.SimpleNamespace(exc_value=RuntimeError(text), object=thing)
            sys.unraisablehook(event)

    script.main(start)
    coroutine.close()
    assert reported == ["another"]


def test_a_new_folder_of_pictures_is_not_told_that_its_checksums_are_lost(tmp_path):
    picture = Image.new("RGB", (2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (4, 8):
            drawn.save(tmp_path / "pictures", step, {"samples": picture, "means": picture})
        series = drawn.read(tmp_path / "pictures")
    assert {name: list(steps) for name, steps in series.items()} == {
        "means": [4, 8], "samples": [4, 8],
    }  # fmt: skip
