# SPDX-License-Identifier: MIT
"""The progress of a run on the screen: a bar or lines, with images per second."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from jaxgen.runs.log import Record

Speed = Callable[[int], float | None]  # images/s up to this step, None while not known


def throughput(start: int, stop: int, chunk: int, batch_size: int) -> Speed:
    """Measures images per second from the end of the first dispatch, which is mostly compilation.

    The `chunk` steps of a dispatch are reported together, so only its last one tells the time.
    """
    ends: list[tuple[int, float]] = []  # (step, time) at which the first and latest dispatch ended

    def speed(step: int) -> float | None:
        is_end = (step - start) % chunk == 0 or step == stop
        if is_end and (not ends or step > ends[-1][0]):
            ends[1:] = [(step, time.monotonic())]
        if len(ends) < 2:
            return None
        (first, began), (done, ended) = ends
        return (done - first) * batch_size / max(ended - began, 1e-9)

    return speed


@contextmanager
def display(
    title: str, start: int, stop: int, speed: Speed, names: tuple[str, ...]
) -> Iterator[Record]:
    """Shows steps, images/s, time left and the metrics called `names`.

    On a terminal it is a bar, elsewhere a plain line at most every ten seconds.
    """
    if sys.stderr.isatty():
        with _bar(title, start, stop, speed, names) as record:
            yield record
    else:
        yield _lines(title, start, stop, speed, names)


@contextmanager
def _bar(
    title: str, start: int, stop: int, speed: Speed, names: tuple[str, ...]
) -> Iterator[Record]:
    from rich import progress as rich
    from rich.console import Console
    from rich.table import Column

    columns = (
        rich.TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        rich.BarColumn(bar_width=12, table_column=Column(min_width=4)),
        rich.MofNCompleteColumn(
            table_column=Column(no_wrap=True, min_width=2 * len(str(stop)) + 1)
        ),
        rich.TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True, min_width=16)),
        rich.TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        rich.TextColumn(
            "{task.fields[metrics]}",
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
    )
    with rich.Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(title, total=stop, completed=start, rate="", metrics="")

        def record(step: int, metrics: dict[str, Any]) -> None:
            rate = _rate(speed(step))
            bar.update(task, completed=step, rate=rate, metrics=_shown(metrics, names))

        yield record


def _lines(title: str, start: int, stop: int, speed: Speed, names: tuple[str, ...]) -> Record:
    began = last = time.monotonic()

    def record(step: int, metrics: dict[str, Any]) -> None:
        nonlocal last
        now, rate = time.monotonic(), _rate(speed(step))
        if now - last < 10 and step not in (start + 1, stop):
            return
        last = now
        left = (now - began) / max(step - start - 1, 1) * (stop - step)
        pace = f"{rate}  {left:.0f} s left" if step > start + 1 else "compiled"
        print(
            f"{title} {step}/{stop}  {pace}  {_shown(metrics, names)}",
            file=sys.stderr,
            flush=True,
        )

    return record


def _rate(speed: float | None) -> str:
    """Writes the speed with its unit; nothing where it is not known yet."""
    return "" if speed is None else f"{speed:,.0f} images/s"


def _shown(metrics: dict[str, Any], names: tuple[str, ...]) -> str:
    return "  ".join(f"{name} {float(np.mean(metrics[name])):.4g}" for name in names)
