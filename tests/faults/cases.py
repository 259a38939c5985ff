# SPDX-License-Identifier: MIT
"""The faults of a run: a damaged file, a death at a phase, a full disk, a clock that jumped."""

import contextlib
import os
import resource
import shutil
import time
from typing import NamedTuple

import numpy as np

PHASES = {  # the function at whose call the process dies, and at which call
    "start": ("jaxgen.runs.run._start", 1),
    "compile": ("jaxgen.runs.run._compiled", 1),
    "first step": ("jaxgen.runs.outputs._logged", 2),
    "step": ("jaxgen.runs.outputs._logged", 6),
    "save": ("jaxgen.runs.checkpoint.save", 2),
    "draw": ("jaxgen.runs.outputs._draw", 2),
    "last draw": ("jaxgen.runs.outputs._draw", 3),
    "end": ("jaxgen.runs.outputs.finish", 1),
    "curves": ("jaxgen.runs.outputs._close_pictures", 1),
}
DISK_SIZES = [2**n for n in range(9, 19)]  # bytes that a file may have
DAMAGES = ("flipped", "truncated", "deleted")
YEARS = (2001, 2037)  # of all files, when a run goes on
CLOCKS = {"back": -(10**8), "forward": 10**8}  # seconds that the clock jumps while a run goes on
WRITERS = ("one after the other", "at the same moment")
KINDS = (*DAMAGES, "killed", "disk full", "clock", "two writers")


class Fault(NamedTuple):
    """One thing that befalls a run."""

    kind: str
    name: str  # of the file or phase; the size, the year, the way of the clock; when
    seed: int = 0


def faults(whole, count, seed=0):
    """All faults of a finished run; of its files at most `count`, drawn anew for each damage."""
    generator = np.random.default_rng(seed)
    paths = sorted(str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file())
    chosen = []
    for kind in DAMAGES:
        places = generator.permutation(len(paths))[:count]
        chosen += [Fault(kind, paths[i], int(generator.integers(2**31))) for i in sorted(places)]
    chosen += [Fault("killed", phase) for phase in PHASES]
    chosen += [Fault("disk full", str(size)) for size in DISK_SIZES]
    chosen += [Fault("clock", name) for name in (*map(str, YEARS), *CLOCKS)]
    return chosen + [Fault("two writers", when) for when in WRITERS]


def damage(path, kind, seed=0):
    """Flips one bit of the file, cuts it in half, or deletes it; an empty file is deleted."""
    content = path.read_bytes()
    if kind == "deleted" or not content:
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        generator = np.random.default_rng(seed)
        place = int(generator.integers(len(content)))
        flipped = bytes([content[place] ^ (1 << int(generator.integers(8)))])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])


def lose_newest(folder):
    """Takes the last checkpoint away, so that there is something left to do."""
    newest = max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(newest)


def date(folder, year):
    """Gives all files a time in that year."""
    moment = time.mktime((year, 1, 1, 0, 0, 0, 0, 1, -1))
    for path in folder.rglob("*"):
        os.utime(path, (moment, moment))


@contextlib.contextmanager
def room_for(most_bytes):
    """Lets no file of this process grow beyond a size; Python ignores the signal that tells so."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
