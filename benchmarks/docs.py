# SPDX-License-Identifier: MIT
"""Writes docs/benchmarks.md from the raw results in benchmarks/results/*.json.

python -m benchmarks.docs
python -m benchmarks.docs --check      # status 1 if the page is not up to date
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.tables import page
from jaxgen import script

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Config:
    """Options of the page."""

    results: str = str(ROOT / "benchmarks" / "results")  # the folder of raw results
    output: str = str(ROOT / "docs" / "benchmarks.md")  # the page
    check: bool = False  # write nothing, and fail if the page is not up to date


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    text, path = generated(Path(config.results)), Path(config.output)
    if not config.check:
        path.write_text(text)
        print(path)
    elif not path.is_file() or path.read_text() != text:
        print(f"{path} differs from its results; run python -m benchmarks.docs")
        sys.exit(1)


def generated(folder: Path) -> str:
    """The page of all results in a folder. Raises ValueError for a file that is no result."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if not {"environment", "rows"} <= result.keys():
            raise ValueError(f"{path} is no result of a benchmark; move it out of this folder")
        results[path.name] = result
    return page.page(results)


if __name__ == "__main__":
    script.main(main)
