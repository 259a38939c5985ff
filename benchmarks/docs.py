# SPDX-License-Identifier: MIT
"""Writes docs/benchmarks.md from the raw results in benchmarks/results/*.json.

python -m benchmarks.docs
python -m benchmarks.docs --check      # status 1 if the page is not up to date
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import result_file
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
        result_file.write_text(path, text)
        print(path)
    elif not path.is_file() or path.read_text() != text:
        print(f"{path} differs from its results; run python -m benchmarks.docs")
        sys.exit(1)


def generated(folder: Path) -> str:
    """The page of all results in a folder. Raises ValueError for a file that is no result."""
    return page.page({path.name: result_file.read(path) for path in sorted(folder.glob("*.json"))})


if __name__ == "__main__":
    script.main(main)
