# SPDX-License-Identifier: MIT
"""Counts what XLA compiles, by JAX's own report of it, and makes it compile quickly (for tests)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jaxlib.version
from jax._src import compiler
from jax._src.interpreters import mlir

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[float] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **about: _seen.append(seconds) if event == _EVENT else None
)
_MISS = "/jax/compilation_cache/cache_misses"
_missed: list[str] = []
jax.monitoring.register_event_listener(
    lambda event, **about: _missed.append(event) if event == _MISS else None
)


# an option of XLA's CPU compiler with which it takes half the time, and that newer ones lack
OLD_EMITTERS = (
    {"xla_cpu_use_fusion_emitters": False} if jaxlib.version.__version_info__ < (0, 11) else {}
)


def use_old_emitters_when_quick() -> None:
    """Compiles with `OLD_EMITTERS` wherever this process compiles with few optimisations."""
    if not OLD_EMITTERS:
        return
    options_of = compiler.get_compile_options

    def get_compile_options(*args, **kwargs):
        options = options_of(*args, **kwargs)
        if jax.config.read("jax_disable_most_optimizations"):
            options.env_option_overrides = [*options.env_option_overrides, *OLD_EMITTERS.items()]
        return options

    compiler.get_compile_options = get_compile_options


@contextmanager
def counted() -> Iterator[list[float]]:
    """Yields a list that holds, at the end, the seconds of every compilation inside."""
    found: list[float] = []
    start = len(_seen)
    yield found
    found.extend(_seen[start:])


@contextmanager
def not_in_the_cache() -> Iterator[list[str]]:
    """Yields a list that holds, at the end, an entry for each program whose machine code was made
    inside because JAX's compilation cache did not have it.
    """
    found: list[str] = []
    start = len(_missed)
    yield found
    found.extend(_missed[start:])


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
