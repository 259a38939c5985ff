# SPDX-License-Identifier: MIT
"""Counts what XLA compiles, by JAX's own report of it (for tests)."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

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
