# SPDX-License-Identifier: MIT
"""Damaged and hostile files are read or refused with one message, within bounds of time and memory.

`python -m tests.fuzz --cases 5000` tries more of the same.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.readers import READERS

CASES = 60  # of each reader


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Counts and faults by reader; one process outside of pytest's tries all of them."""
    path = tmp_path_factory.mktemp("fuzz") / "table.json"
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--json", str(path)]
    root = Path(__file__).parents[1]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500)
    assert path.is_file(), ended.stderr[-2000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.slow
def test_no_damaged_file_does_more_than_be_refused(reader, table):
    row = table[reader]
    assert row["faults"] == []
    assert row["refused"] > row["tried"] / 10  # the damage is of a kind that matters
