# SPDX-License-Identifier: MIT
"""The file of a result: an object with the environment and the rows, and what a script adds."""

import json
from pathlib import Path
from typing import Any

from jaxgen import files

MOST_BYTES = 2**26  # that of all train steps has 0.1 MB


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes an object as JSON, as `write_text` does."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a benchmark may be stopped at any time."""
    files.write_whole(path, lambda partial: partial.write_text(text))


def read(path: Path) -> dict[str, Any]:
    """The result in a file. Raises ValueError for a file that holds none."""
    content = files.read_object(path, MOST_BYTES, infinities=True)  # a wrong figure may be NaN
    environment, rows = content.get("environment"), content.get("rows")
    if not isinstance(environment, dict) or not isinstance(rows, list):
        raise ValueError(f"{path} is no result of a benchmark, which has environment and rows")
    return content
