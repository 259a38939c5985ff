# SPDX-License-Identifier: MIT
"""The logs of a run: JSON lines always, TensorBoard and W&B on request."""

import json
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen import files

_LARGEST = sys.float_info.max
_MOST_BYTES = 2**30  # of a metrics file

Record = Callable[[int, dict[str, Any]], None]  # (step, metrics): writes them to one log


class Rows(NamedTuple):
    """The rows of a metrics file that a continuation keeps."""

    digest: int  # CRC-32 of their lines
    last: int  # step of the last one, 0 if there is none


def plain(value: Any) -> Any:
    """Turns a metric into the shortest decimal that reads back as the same float32, for JSON."""
    array = np.asarray(value, np.float32)
    if array.ndim:
        return [plain(x) for x in array]
    return float(str(np.float32(array)))


def keep(path: Path, is_wanted: Callable[[int], bool]) -> int:
    """Drops the rows whose step is not wanted, and lines that are no rows, which it warns of.

    Returns the step of the last row that stays; 0 if none does.
    """
    if not path.exists():
        return 0
    rows = [(line + b"\n", row["step"]) for line, row in _parsed(path) if is_wanted(row["step"])]
    content = b"".join(line for line, _ in rows)
    files.write_whole(path, lambda partial: partial.write_bytes(content))
    return rows[-1][1] if rows else 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads all rows of a metrics file, each with `step` and `loss`."""
    return [row for _, row in _parsed(path)]


def digest(path: Path, last: int) -> int | None:
    """Computes the CRC-32 of the rows up to step `last`; None where other warnings name the fault.

    Others warn of damaged lines, and of rows that end before that step.
    """
    if not path.is_file():
        return None
    pairs, damaged = _examined(path)
    lines = [line + b"\n" for line, row in pairs if row["step"] <= last]
    is_whole = not damaged and any(row["step"] >= last for _, row in pairs)
    return zlib.crc32(b"".join(lines)) if is_whole else None


def _parsed(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Reads lines and rows; warns of damaged ones but the last, which a kill may have cut off."""
    pairs, damaged = _examined(path)
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} lines are damaged and passed over, first line {damaged[0]}",
            stacklevel=3,
        )
    return pairs


def _examined(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    """Reads lines and rows, and the numbers of the damaged lines but the last."""
    lines = files.read_bytes(path, _MOST_BYTES).removesuffix(b"\n").split(b"\n")
    rows = [_row(line) for line in lines]
    names = next((row.keys() for row in rows if row is not None), None)
    rows = [row if row is not None and row.keys() == names else None for row in rows]
    rows = _rising(rows)
    damaged = [i for i, row in enumerate(rows[:-1], start=1) if row is None]
    pairs = [(line, row) for line, row in zip(lines, rows, strict=True) if row is not None]
    return pairs, damaged


def _rising(rows: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    """Keeps the rows whose step lies between those before and after them; None for the others."""
    result: list[dict[str, Any] | None] = []
    last, following = 0, [row["step"] for row in rows if row is not None]
    for row in rows:
        if row is not None:
            following.pop(0)
            if last < row["step"] and (not following or row["step"] < following[0]):
                last = row["step"]
            else:
                row = None
        result.append(row)
    return result


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int and "loss" in row
    return row if is_row and all(_is_metric(value) for value in row.values()) else None


def _is_metric(value: Any) -> bool:
    """Says whether a value is a finite float, or a list of one for each of several models."""
    values = value if isinstance(value, list) else [value]
    return all(type(each) in (int, float) and abs(each) <= _LARGEST for each in values)


@contextmanager
def json_lines(
    path: Path, is_kept: Callable[[int], bool] = lambda step: True
) -> Iterator[tuple[Record, Callable[[], Rows]]]:
    """Appends one object per step; yields (record, flush), where flush writes down to the disk.

    flush gives the rows that a continuation keeps: all that are there now, and of those to come the
    ones that `is_kept` names by their step. The file holds no times, so that a resumed run's file
    equals an uninterrupted one's.
    """
    # unbuffered: a row is there for readers at once, and none is left to write at the end, when
    # the disk may be full
    kept = Rows(0, 0)
    if path.exists() and (rows := read_rows(path)):
        kept = Rows(zlib.crc32(path.read_bytes()), rows[-1]["step"])
    with path.open("ab", buffering=0) as file:

        def record(step: int, metrics: dict[str, Any]) -> None:
            row = {"step": step} | {name: plain(x) for name, x in metrics.items()}
            nonlocal kept
            rest = json.dumps(row).encode() + b"\n"
            if is_kept(step):
                kept = Rows(zlib.crc32(rest, kept.digest), step)
            with files.named_when_full(path):
                while rest:  # a disk that is nearly full takes a part of a row
                    rest = rest[file.write(rest) :]

        def flush() -> Rows:
            with files.named_when_full(path):
                os.fsync(file.fileno())
            _check_place(path, file.fileno())
            return kept

        try:
            yield record, flush
        finally:
            flush()


def _check_place(path: Path, open_file: int) -> None:
    """Raises FileNotFoundError if the open file is no longer the one at `path`.

    A run whose folder is gone would train on, for hours, with nothing that a resumption could use.
    """
    if not (path.exists() and os.path.samestat(os.fstat(open_file), path.stat())):
        raise FileNotFoundError(
            f"{path} was removed, moved or replaced while the run was writing it. If the folder "
            "lies elsewhere now, go on there with --run-dir and --resume; or start again"
        )


def import_tensorboard() -> Any:
    """Imports tensorboardX. Raises ImportError naming the extra."""
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError('TensorBoard logs need: pip install -e ".[log]"') from error
    return tensorboardX


def import_wandb() -> Any:
    """Imports wandb. Raises ImportError naming the extra."""
    try:
        import wandb as client
    except ImportError as error:
        raise ImportError('W&B logs need: pip install -e ".[log]"') from error
    return client


@contextmanager
def tensorboard(folder: Path, start: int = 0) -> Iterator[Record]:
    """Writes scalars for TensorBoard (extra: log); hides what was written after step `start`."""
    purge = {"purge_step": start + 1} if start else {}
    writer = import_tensorboard().SummaryWriter(str(folder), **purge)

    def record(step: int, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, float(np.mean(value)), step)

    try:
        yield record
    finally:
        writer.close()


@contextmanager
def wandb(folder: Path, project: str, config: dict[str, Any]) -> Iterator[Record]:
    """Sends scalars to Weights & Biases (extra: log)."""
    run = import_wandb().init(project=project, name=folder.name, dir=str(folder), config=config)

    def record(step: int, metrics: dict[str, Any]) -> None:
        run.log({name: float(np.mean(value)) for name, value in metrics.items()}, step=step)

    try:
        yield record
    finally:
        run.finish()
