# SPDX-License-Identifier: MIT
"""How much XLA optimises, and a count of what it compiles by JAX's own report (for tests)."""

import os
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


@contextmanager
def optimized() -> Iterator[None]:
    """Compiles with all of XLA's optimisations inside, in this process and those that it starts."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name), os.environ.pop(name.upper(), "0")
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before[0])
        os.environ[name.upper()] = before[1]
