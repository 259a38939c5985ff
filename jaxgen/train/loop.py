# SPDX-License-Identifier: MIT
"""The training loop: it dispatches chunks of steps, keeps few in flight, and reports their metrics.

It knows neither models nor files: the caller's callbacks record metrics, save states and draw.
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
    """A loss or gradient is NaN or infinite; `step` is the step that had it."""

    def __init__(self, step: int, names: list[str]) -> None:
        self.step = step
        super().__init__(
            f"step {step}: {_few(names)} not finite; the run stops and saves nothing of this step. "
            f"Earlier checkpoints stay. Try a lower --learning-rate, --clip-norm 1 or "
            f"--dtype float32"
        )


class Callbacks(NamedTuple):
    """What the caller does during a run; each gets the number of finished steps it belongs to."""

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
    """Trains to step `stop` or until interrupted; returns the state and the steps done.

    One call of `run` does `chunk` steps (the last call may do fewer); its metrics are [chunk].
    save_every, draw_every: in steps, 0 for the end only.
    The host does not wait for the newest steps: it reads metrics when they are ready, or once
    `MAX_IN_FLIGHT` further chunks are dispatched; and it reads all of them before a state is saved
    or drawn, so that no state after a non-finite step reaches the disk.
    Raises NonFiniteError with the first such step.
    """
    pending: deque = deque()
    done = start
    while done < stop and not callbacks.interrupted(done):
        size = min(chunk, stop - done)
        state, metrics = run(state, batches(done, size), key)
        pending.append((done, metrics))
        before, done = done, done + size
        _drain(pending, callbacks.record, keep=MAX_IN_FLIGHT)

        # pictures first: a checkpoint on disk means that all pictures up to its step are there
        if _passes(before, done, draw_every) and done < stop:
            _drain(pending, callbacks.record, keep=0)
            callbacks.draw(done, state)
        if _passes(before, done, save_every) and done < stop:
            _drain(pending, callbacks.record, keep=0)
            callbacks.save(done, state)

    _drain(pending, callbacks.record, keep=0)
    if done == stop:
        callbacks.draw(done, state)
    if done > start:
        callbacks.save(done, state)
    return state, done


def _few(names: list[str]) -> str:
    """Gives the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _passes(before: int, after: int, every: int) -> bool:
    """Says whether a multiple of `every` lies in (before, after]; False if every is 0."""
    return every > 0 and after // every > before // every


def _drain(pending: deque, record: Callable[[int, dict], None], keep: int) -> None:
    """Records the oldest chunks: all that are ready, and, after waiting, those beyond `keep`."""
    while pending and (len(pending) > keep or _is_ready(pending[0][1])):
        first, metrics = pending.popleft()
        values = jax.device_get(metrics)
        # all steps in one check: where a step takes 0.1 ms, a check for each would cost time
        finite = {name: np.isfinite(x).reshape(len(x), -1).all(1) for name, x in values.items()}
        for i in range(len(values["loss"])):
            faulty = [name for name, is_finite in finite.items() if not is_finite[i]]
            if faulty:
                raise NonFiniteError(first + i + 1, faulty)
            record(first + i + 1, {name: x[i] for name, x in values.items()})


def _is_ready(metrics: Metrics) -> bool:
    # pyrefly: ignore[missing-attribute]  # jax's stub of Array lacks it
    return all(x.is_ready() for x in metrics.values())
