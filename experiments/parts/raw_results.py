# SPDX-License-Identifier: MIT
"""The file of a study's raw results: JSON with its settings and the machine; never replaced."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.measure import environment


def check_file(path: Path) -> None:
    """Raises ValueError where no new JSON file can be written at `path`: before the work."""
    if path.suffix != ".json":
        shown = files.printable(path)
        raise ValueError(f"--output is {shown}; raw results are JSON: end it in .json")
    files.check_new(path, "--output")
    files.check_writable(path)


def write(path: Path, config: Any, results: dict[str, Any]) -> dict[str, Any]:
    """Writes the results of a study with the options that it ran with, and returns all of it."""
    settings = json.loads(json.dumps(asdict(config), default=str))
    record = {"config": settings, **results, "environment": environment.record()}
    files.write_whole(path, lambda p: p.write_text(json.dumps(record, indent=1) + "\n"))
    print(path)
    return record
