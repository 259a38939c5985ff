# SPDX-License-Identifier: MIT
"""The loop: dispatches chunks of steps, keeps few in flight, and reports what comes back.

It knows neither models nor files. What happens to metrics, states and pictures is given to it.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgen.types import Batch, Key, Metrics

Batches = Callable[[int, int], Batch]  # (first step, number of steps) -> what the step takes
MAX_IN_FLIGHT = 8  # dispatches; on CPU, more than 32 deadlock the all-reduce of forced devices


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite; `step` is the step that computed it."""

    def __init__(self, step: int, names: list[str]) -> None:
        self.step = step
        super().__init__(
            f"step {step}: {', '.join(names)} not finite; the run stops and the last checkpoint "
            f"before it stays. Try a lower --learning-rate, --clip-norm 1 or --dtype float32"
        )


class Callbacks(NamedTuple):
    """What the outside does. Each is called with the number of finished steps it belongs to."""

    record: Callable[[int, dict[str, Any]], None]  # metrics of one step, as floats
    save: Callable[[int, Any], None]  # the state, at multiples of save_every and at the end
    draw: Callable[[int, Any], None]  # the state, at multiples of draw_every and at the end
    interrupted: Callable[[int], bool]  # True stops after the steps done so far


def train(
    run: Callable[[Any, Batch, Key], tuple[Any, Metrics]],
    state: Any,
    batches: Batches,
    key: Key,
    callbacks: Callbacks,
    *,
    start: int,
    stop: int,
    chunk: int = 1,
    save_every: int = 0,
    draw_every: int = 0,
) -> tuple[Any, int]:
    """The state after step `stop`, or earlier if interrupted, and the number of steps done.

    One call of `run` does `chunk` steps (the last one fewer, if need be); its metrics are [chunk].
    The host does not wait for the newest steps: metrics are read when they are ready, or once
    `MAX_IN_FLIGHT` further chunks are under way; and all of them before a state is saved or
    drawn, so that no state after a non-finite step reaches the disk.
    Raises NonFiniteError naming the first such step.
    """
    pending: deque = deque()
    done = start
    while done < stop and not callbacks.interrupted(done):
        size = min(chunk, stop - done)
        state, metrics = run(state, batches(done, size), key)
        pending.append((done, metrics))
        before, done = done, done + size
        _drain(pending, callbacks.record, keep=MAX_IN_FLIGHT)

        if _passes(before, done, save_every) and done < stop:
            _drain(pending, callbacks.record, keep=0)
            callbacks.save(done, state)
        if _passes(before, done, draw_every) and done < stop:
            _drain(pending, callbacks.record, keep=0)
            callbacks.draw(done, state)

    _drain(pending, callbacks.record, keep=0)
    if done > start:
        callbacks.save(done, state)
    if done == stop:
        callbacks.draw(done, state)
    return state, done


def _passes(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]; never if every is 0."""
    return every > 0 and after // every > before // every


def _drain(pending: deque, record: Callable[[int, dict], None], keep: int) -> None:
    """Records the oldest chunks: all that are ready, and waits for those beyond `keep`."""
    while pending and (len(pending) > keep or _is_ready(pending[0][1])):
        first, metrics = pending.popleft()
        values = jax.device_get(metrics)
        # of all steps at once: beside steps of a tenth of a millisecond, checks one by one show
        finite = {name: np.isfinite(x).reshape(len(x), -1).all(1) for name, x in values.items()}
        for i in range(len(values["loss"])):
            bad = [name for name, ok in finite.items() if not ok[i]]
            if bad:
                raise NonFiniteError(first + i + 1, bad)
            record(first + i + 1, {name: x[i] for name, x in values.items()})


def _is_ready(metrics: Metrics) -> bool:
    # pyrefly: ignore[missing-attribute]  # jax's stub of Array lacks it
    return all(x.is_ready() for x in metrics.values())
