# SPDX-License-Identifier: MIT
"""Counts what XLA compiles, by JAX's own report of it (for tests)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax._src.interpreters import mlir

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[float] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **about: _seen.append(seconds) if event == _EVENT else None
)


@contextmanager
def counted() -> Iterator[list[float]]:
    """Yields a list that holds, at the end, the seconds of every compilation inside."""
    found: list[float] = []
    start = len(_seen)
    yield found
    found.extend(_seen[start:])


@contextmanager
def lowered_by(register: Callable[[], None]) -> Iterator[None]:
    """Lowers as `register` says inside, and as before afterwards: JAX itself has no way back.

    Programs of other tests would differ in their last bits with the lowerings of jaxgen.cpu.
    """
    rules = mlir._platform_specific_lowerings["cpu"]
    before = dict(rules)
    register()
    try:
        yield
    finally:
        rules.clear()
        rules.update(before)
        jax.clear_caches()
