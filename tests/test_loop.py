# SPDX-License-Identifier: MIT
"""The loop: when it records, saves, draws and stops; NumPy stands in for the step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.train import loop


def counting(state, batch, key):
    """Adds 1 per step; the loss of a step is the number it has reached."""
    first, count = batch
    return state + count, {"loss": jnp.arange(first + 1, first + count + 1, dtype=jnp.float32)}


def watched(stop_at: int | None = None) -> tuple[loop.Callbacks, dict[str, list]]:
    seen: dict[str, list] = {"record": [], "save": [], "draw": []}
    callbacks = loop.Callbacks(
        lambda step, row: seen["record"].append((step, float(row["loss"]))),
        lambda step, state: seen["save"].append((step, state)),
        lambda step, state: seen["draw"].append((step, state)),
        lambda done: stop_at is not None and done >= stop_at,
    )
    return callbacks, seen


def go(callbacks: loop.Callbacks, run: Any = counting, **options: Any) -> tuple[Any, int]:
    start = options.get("start", 0)
    return loop.train(
        run, start, lambda first, n: (first, n), jax.random.key(0), callbacks, **options
    )


def test_every_step_is_recorded_once_and_in_order():
    callbacks, seen = watched()

    go(callbacks, start=0, stop=103, chunk=10)

    assert seen["record"] == [(i, float(i)) for i in range(1, 104)]


def test_states_are_saved_and_drawn_at_the_first_boundary_after_their_step_and_at_the_end():
    callbacks, seen = watched()

    state, done = go(callbacks, start=0, stop=100, chunk=10, save_every=25, draw_every=50)

    assert seen["save"] == [(30, 30), (50, 50), (80, 80), (100, 100)]
    assert seen["draw"] == [(50, 50), (100, 100)]
    assert (state, done) == (100, 100)


def test_an_interrupted_run_saves_where_it_stands_and_does_not_draw():
    callbacks, seen = watched(stop_at=40)

    state, done = go(callbacks, start=0, stop=100, chunk=10)

    assert (state, done) == (40, 40)
    assert seen["save"] == [(40, 40)]
    assert seen["draw"] == []
    assert seen["record"][-1] == (40, 40.0)


def test_metrics_reach_the_record_before_the_state_they_belong_to_is_saved():
    order = []
    callbacks = loop.Callbacks(
        lambda step, row: order.append(("record", step)),
        lambda step, state: order.append(("save", step)),
        lambda step, state: None,
        lambda done: False,
    )

    go(callbacks, start=0, stop=20, chunk=1, save_every=10)

    assert order.index(("save", 10)) == order.index(("record", 10)) + 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(bad):
    def breaking(state, batch, key):
        first, count = batch
        values = jnp.arange(first + 1, first + count + 1, dtype=jnp.float32)
        return state + count, {"loss": jnp.where(values == 17, bad, values), "fine": values}

    callbacks, seen = watched()

    with pytest.raises(loop.NonFiniteError, match="step 17: loss not finite"):
        go(callbacks, breaking, start=0, stop=100, chunk=5, save_every=10)

    assert [step for step, _ in seen["save"]] == [10]
    assert seen["record"][-1] == (16, 16.0)


def test_few_chunks_are_in_flight():
    """Metrics that never report themselves ready are waited for once enough are under way."""
    waiting = 0
    most = 0

    class Slow:
        def is_ready(self):
            return False

        def __array__(self, dtype=None, copy=None):
            return np.ones(1, np.float32)

    def run(state, batch, key):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return state, {"loss": Slow()}

    def record(step, row):
        nonlocal waiting
        waiting -= 1

    callbacks = loop.Callbacks(record, lambda *_: None, lambda *_: None, lambda done: False)

    go(callbacks, run, start=0, stop=50)

    assert most == loop.MAX_IN_FLIGHT + 1
    assert waiting == 0
