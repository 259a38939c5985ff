# SPDX-License-Identifier: MIT
"""The files of the results of `iwae_table.py`: one for each run and budget, never overwritten."""

import json
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.measure import environment
from parts import iwae_paper
from parts.iwae_cells import Run

# facts that older results lack, in words
DIGESTS = {"digest": "training images", "test_digest": "test images"}


def path_of(folder: Path, run: Run, facts: dict[str, Any]) -> Path:
    """Names the file of a run's results."""
    ending = "-modern" if facts["mode"] == "modern" else "-swap" * run.swapped
    return folder / f"{run.name}-stage{facts['stages'] - 1}{ending}.json"


def are_there(folder: Path, run: Run, facts: dict[str, Any]) -> bool:
    """Says whether a run has its results. Raises ValueError where they are of something else.

    facts: the part of the results that says what they are of.
    """
    path = path_of(folder, run, facts)
    files.check_writable(path)
    if not path.is_file():
        return False
    row = read(path)["rows"][0]
    others = [name for name, value in facts.items() if row.get(name) != value]
    others = [name for name in others if name in row or name not in DIGESTS]
    if others:
        named = ", ".join(DIGESTS.get(name, name) for name in others)
        raise ValueError(f"{path} is of other {named}; use another --folder, or move it away")
    print(f"{title(run)}: {row['nats']:.2f} nats, in {path}", flush=True)
    return True


def write(folder: Path, run: Run, row: dict[str, Any], micros: float | None) -> None:
    """Writes the results of a run."""
    results = {"environment": environment.record(), "us_per_step": micros, "rows": [row]}
    content = json.dumps(results, indent=1, allow_nan=False) + "\n"
    files.write_whole(path_of(folder, run, row), lambda p: p.write_text(content))
    print(f"{title(run)}: {row['nats']:.2f} nats", flush=True)


def title(run: Run) -> str:
    """Names a run for a reader."""
    return run.name.replace("-", " ") + ", swapped" * run.swapped


def read(path: Path) -> dict[str, Any]:
    """Reads the raw results in a file. Raises ValueError for another file."""
    results = files.read_object(path)
    try:
        results["rows"][0], iwae_paper.table([results])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of this table; run its cell again") from error
    return results


def write_table(folder: Path, table: Path) -> None:
    """Writes the table of all raw results in the folder."""
    paths = sorted(folder.glob("*-stage*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no results; run the cells first (--action run)")
    content = iwae_paper.table([read(path) for path in paths])
    files.write_whole(table, lambda p: p.write_text(content))
    print(content + f"\n{table}")
