# SPDX-License-Identifier: MIT
"""Candidates that take turns, A B C A B C, so that a slow minute of the machine hits all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Candidate(NamedTuple):
    """Something to be timed. `run(n)` does n units of work and returns when they are finished.

    unit: run is only ever called with multiples of it, such as the steps of one dispatch.
    """

    run: Callable[[int], None]
    unit: int = 1


class Spread(NamedTuple):
    """The median of several measurements, and the quartiles around it."""

    median: float
    low: float  # a quarter of the measurements are below
    high: float  # a quarter are above


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles. Raises ValueError without any value."""
    if len(values) == 0:
        raise ValueError("no measurement to take the median of; use one turn or more")
    low, median, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def take_turns(
    candidates: Mapping[str, Candidate],
    num_turns: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per unit of work of every candidate in every turn, {name: [num_turns]}.

    Each is warmed up first, and from that its share of work is set so that a turn takes about
    `seconds`. What a first call costs (compiling) belongs before this.
    """
    if num_turns < 1:
        raise ValueError(f"{num_turns} turns; use 1 or more")
    if not seconds > 0:
        raise ValueError(f"turns of {seconds} seconds; use a positive time")
    sizes = {name: _size(c, seconds, clock) for name, c in candidates.items()}
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(num_turns):
        for name, candidate in candidates.items():
            found[name].append(_timed(candidate, sizes[name], clock) / sizes[name])
    return found


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster the second of two candidates is, turn by turn.

    Both ran side by side in each turn, so what slowed one turn cancels.
    """
    if len(slow) != len(fast):
        raise ValueError(f"{len(slow)} turns against {len(fast)}; time both in the same run")
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def _size(candidate: Candidate, seconds: float, clock: Callable[[], float]) -> int:
    """Units of work that take about `seconds`, found by doubling; this is the warm-up too.

    The first call only warms up: it compiles what the loop around the work needs, and a turn of
    the size that such a call suggests would be one cold step.
    """
    size = candidate.unit
    candidate.run(size)
    took = _timed(candidate, size, clock)
    for _ in range(30):
        if took >= seconds / 4:
            break
        size *= 2
        took = _timed(candidate, size, clock)
    rate = size / max(took, 1e-9)
    return max(1, round(rate * seconds / candidate.unit)) * candidate.unit


def _timed(candidate: Candidate, size: int, clock: Callable[[], float]) -> float:
    began = clock()
    candidate.run(size)
    return clock() - began
