# SPDX-License-Identifier: MIT
"""The pictures that a run has drawn, and their checksums: a damaged or missing one is noticed."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from jaxgen import files
from jaxgen.pictures import images

SUMS = "sha256sums"  # beside the pictures, as `sha256sum --check` reads it
_MOST_BYTES = 2**28  # of a picture, or of all checksums


def save(folder: Path, done: int, pictures: Mapping[str, Image.Image]) -> None:
    """Saves the pictures of step `done`, by their names, and their checksums."""
    earlier = _all_sums(folder)
    paths = [folder / f"{name}-{done:07d}.png" for name in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        images.save(path, picture)
    sums = earlier | {path.name: _sum_of(path) for path in paths}
    text = "".join(f"{number}  {name}\n" for name, number in sorted(sums.items()))
    files.write_whole(folder / SUMS, lambda partial: partial.write_text(text))


def read(folder: Path) -> dict[str, dict[int, Image.Image]]:
    """Reads the pictures by name and step; warns, in one line, of those that are not as drawn.

    These are left out and cannot be drawn again: the states that they came from are gone.
    """
    series: dict[str, dict[int, Image.Image]] = {}
    sums, faults = _read_sums(folder) or {}, []
    paths = {path.name: path for path in folder.glob("*-*.png")}
    for path in sorted({**paths, **{name: folder / name for name in sums}}.values()):
        name, _, step = path.stem.rpartition("-")
        try:
            if not path.is_file():
                raise ValueError(f"{path} of {SUMS} is missing")
            picture, number = images.read(path), int(step)
            if sums.get(path.name, _sum_of(path)) != _sum_of(path):
                raise ValueError(f"{path} is not what {SUMS} says")
        except (ValueError, OSError) as error:
            faults.append(files.first_line(error))
        else:
            series.setdefault(name, {})[number] = picture
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        warnings.warn(
            f"picture left out: {faults[0]}{more}; it cannot be drawn again", stacklevel=2
        )
    return series


def _all_sums(folder: Path) -> dict[str, str]:
    """Reads the checksums by file name; warns where they are lost, and computes them again."""
    sums, paths = _read_sums(folder), list(folder.glob("*-*.png"))
    if sums is not None or not paths:
        return sums or {}
    warnings.warn(f"{folder / SUMS} is missing or damaged; made anew", stacklevel=3)
    return {path.name: _sum_of(path) for path in paths}


def _read_sums(folder: Path) -> dict[str, str] | None:
    """Reads the checksums by file name; None where they are not there or cannot be read."""
    try:
        lines = files.read_bytes(folder / SUMS, _MOST_BYTES).decode("ascii").splitlines()
        pairs = [line.split("  ", 1) for line in lines]
        return {Path(name).name: number for number, name in pairs}
    except ValueError:
        return None


def _sum_of(path: Path) -> str:
    return hashlib.sha256(files.read_bytes(path, _MOST_BYTES)).hexdigest()
