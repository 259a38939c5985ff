# SPDX-License-Identifier: MIT
"""Tries many damaged files on every reader and prints what came of them.

    python -m tests.fuzz --cases 5000 --reader npz
    python -m tests.fuzz --reader npz --keep 1234 /tmp/case     # makes the folder of one case

Ends with code 1 if there are faults: an exception other than a ValueError, a message that names no
file, is long or holds control characters, a hang, too much memory, a process that dies.
"""

import argparse
import collections
import json
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
os.environ["JAX_PLATFORMS"] = "cpu"

from fuzz import cases
from fuzz.readers import READERS
from jaxgen import files

SHOWN = 20  # faults of a reader that are spelled out


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="of each reader")
    parser.add_argument("--reader", action="append", choices=READERS, help="may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", nargs=2, metavar=("CASE", "FOLDER"), help="make one case's folder"
    )
    parser.add_argument("--json", type=Path, help="write the counts and faults to this file, too")
    options = parser.parse_args()
    names = options.reader or list(READERS)
    if options.keep:
        return _keep(names[0], int(options.keep[0]), options.seed, Path(options.keep[1]))

    print(f"{'reader':16}{'tried':>8}{'refused':>9}{'accepted':>9}{'faults':>8}{'seconds':>9}")
    table = {}
    for name in names:
        began = time.monotonic()
        verdicts = cases.run(name, range(options.cases), options.seed)
        table[name] = _row(name, verdicts, time.monotonic() - began)
    if options.json:
        options.json.write_text(json.dumps(table))
    return int(any(row["faults"] for row in table.values()))


def _row(name: str, verdicts: list[cases.Verdict], seconds: float) -> dict:
    """Prints a reader's line and its faults."""
    counts = collections.Counter("faults" if v.is_fault else v.outcome for v in verdicts)
    row = [len(verdicts), counts["refused"], counts["accepted"], counts["faults"]]
    print(f"{name:16}{row[0]:>8}{row[1]:>9}{row[2]:>9}{row[3]:>8}{seconds:>9.1f}", flush=True)
    faults = [v for v in verdicts if v.is_fault]
    lines = [f"  case {v.case} ({v.change}): {v.outcome}" for v in faults]
    for verdict, line in list(zip(faults, lines, strict=True))[:SHOWN]:
        print(line)
        for part in verdict.detail.splitlines()[1:]:
            print("     ", files.printable(part))
    return {"tried": row[0], "refused": row[1], "accepted": row[2], "faults": lines}


def _keep(name: str, case: int, seed: int, place: Path) -> int:
    place.mkdir()
    cases.make_sound(name, place)
    print(f"{place / 'case'}: {cases.damage(name, case, seed, place).text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
