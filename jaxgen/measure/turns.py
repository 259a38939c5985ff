# SPDX-License-Identifier: MIT
"""Candidates that take turns, A B C A B C, so that a slow minute of the machine slows all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Candidate(NamedTuple):
    """A function to time: `run(n)` does n units of work and returns when they are finished.

    unit: n is always a multiple of it, such as the steps of one dispatch.
    """

    run: Callable[[int], None]
    unit: int = 1


class Spread(NamedTuple):
    """The median of several measurements, and the quartiles around it."""

    median: float
    low: float  # a quarter of the measurements are below
    high: float  # a quarter are above


def spread(values: Sequence[float]) -> Spread:
    """The median and quartiles of the values. Raises ValueError if there are none."""
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
    """The seconds per unit of work of every candidate in every turn, {name: [num_turns]}.

    Each candidate is warmed up first, which also gives the number of units with which a turn takes
    about `seconds`. The costs of a first call (compiling) belong before this.
    Raises ValueError for less than one turn and for turns without time.
    """
    if num_turns < 1:
        raise ValueError(f"{num_turns} turns; use 1 or more")
    if not seconds > 0:
        raise ValueError(f"turns of {seconds} seconds; use a positive time")
    sizes = {name: _size(c, seconds, clock) for name, c in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(num_turns):
        for name, candidate in candidates.items():
            times[name].append(_seconds(candidate, sizes[name], clock) / sizes[name])
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """The factor by which the second of two candidates is faster, from the factors of all turns.

    Both ran in every turn, so what slowed the machine in one turn cancels.
    Raises ValueError for different numbers of turns.
    """
    if len(slow) != len(fast):
        raise ValueError(f"{len(slow)} turns against {len(fast)}; time both in the same run")
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def _size(candidate: Candidate, seconds: float, clock: Callable[[], float]) -> int:
    """The units of work that take about `seconds`, by doubling; this is the warm-up too.

    The first call is not timed: it compiles what the loop around the work needs, and is so slow
    that a turn would become one unit.
    """
    size = candidate.unit
    candidate.run(size)
    elapsed = _seconds(candidate, size, clock)
    for _ in range(30):
        if elapsed >= seconds / 4:
            break
        size *= 2
        elapsed = _seconds(candidate, size, clock)
    rate = size / max(elapsed, 1e-9)
    return max(1, round(rate * seconds / candidate.unit)) * candidate.unit


def _seconds(candidate: Candidate, size: int, clock: Callable[[], float]) -> float:
    began = clock()
    candidate.run(size)
    return clock() - began
