# SPDX-License-Identifier: MIT
"""One or two changes to a folder of files: to the bytes of a file, to what it is, to its name."""

import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

from fuzz import byte_changes, containers
from fuzz.json_values import CONTROL

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) (w) file\nshowpage\n"
_CONTENTS = [b"", b"\n", b"{}", b"[]", b"null", b"\0" * 100, EPS, b"PK\x03\x04", b"\x1f\x8b\x08"]
_SPECIAL = ("pipe", "endless", "outside", "loop", "folder", "removed")


class Change(NamedTuple):
    """What was done to a folder."""

    text: str
    leads_outside: bool = False  # a file was replaced by a link out of the folder


def mutate(rng: random.Random, folder: Path, outside: Path) -> Change:
    """Changes a folder. outside: a place beside it, which links may lead to."""
    changes = [_change(rng, folder, outside) for _ in range(rng.choice([1, 1, 1, 2]))]
    return Change(
        "; ".join(change.text for change in changes), any(c.leads_outside for c in changes)
    )


def _change(rng: random.Random, folder: Path, outside: Path) -> Change:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    if not paths:
        return Change("no file is left")
    path = rng.choice(paths)
    name = path.relative_to(folder).as_posix()
    dice = rng.random()
    if dice < 0.12:
        kind = rng.choice(_SPECIAL)
        replace(path, kind, outside)
        return Change(f"{name} is {kind}", leads_outside=kind == "outside")
    if dice < 0.17:
        return Change(f"{name}: {_entry(rng, path, paths)}")
    data = path.read_bytes()
    inside = containers.BY_SUFFIX.get(path.suffix, byte_changes.mutate)
    try:
        data, text = (inside if dice < 0.65 else byte_changes.mutate)(rng, data)
    except Exception:  # the first change has left no container to open
        data, text = byte_changes.mutate(rng, data)
    path.write_bytes(data)
    return Change(f"{name}: {text}")


def replace(path: Path, kind: str, outside: Path) -> None:
    """Puts something else in the place of a file."""
    if kind == "outside":
        shutil.copy(path, outside / path.name)
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "endless":
            path.symlink_to("/dev/zero")
        case "outside":
            path.symlink_to(outside / path.name)
        case "loop":
            path.symlink_to(path)
        case "folder":
            path.mkdir()


def _entry(rng: random.Random, path: Path, paths: list[Path]) -> str:
    """Another name, a neighbour with a strange name, or another file's content."""
    match rng.choice(["rename", "copy", "exchange", "content"]):
        case "rename":
            path.rename(path.with_name(_strange(rng) + path.suffix))
            return "renamed"
        case "copy":
            shutil.copy(path, path.with_name(_strange(rng) + path.suffix))
            return "copied under a strange name"
        case "exchange":
            other = rng.choice(paths)
            path.write_bytes(other.read_bytes())
            return f"has the content of {other.name}"
    path.write_bytes(rng.choice(_CONTENTS))
    return "has other content"


def _strange(rng: random.Random) -> str:
    text = CONTROL.replace("\0", "").replace("/", "")
    return rng.choice(
        [text, "x" * 200, "a\nb", "\u202egnp", "é", "..x", "-rf", os.fsdecode(b"\xff")]
    )
