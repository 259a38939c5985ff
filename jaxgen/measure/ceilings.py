# SPDX-License-Identifier: MIT
"""The limits of the device: the fastest matrix product and the fastest copy that JAX makes it do.

They are measured in the same run as the candidates, so that a fraction of a limit is one of this
machine at its present clock, and not of a data sheet.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.types import Array

# sides of the square matrices, and bytes of the array that is copied: enough to fill the device
SIDES = {"cpu": (1024, 2048), "gpu": (4096, 8192, 12288), "tpu": (4096, 8192)}
COPY_BYTES = {"cpu": 2**27, "gpu": 2**30, "tpu": 2**30}
# calls before the host waits, so that its waiting takes no time of theirs
CALLS = {"cpu": 1, "gpu": 10, "tpu": 10}


class Ceilings(NamedTuple):
    """The highest rates of one device."""

    flops_per_second: float  # of matrix products of one dtype
    bytes_per_second: float  # read and written


def measure(
    dtype: Any, sides: Sequence[int] | None = None, copy_bytes: int | None = None, repeats: int = 5
) -> Ceilings:
    """The ceilings of the first device for products in `dtype`, the best of `repeats`.

    sides: of square matrices, the fastest counts; copy_bytes: the array that is copied. Both are by
    default those of the backend.
    """
    backend = jax.default_backend()
    sides = SIDES.get(backend, SIDES["gpu"]) if sides is None else sides
    copy_bytes = COPY_BYTES.get(backend, COPY_BYTES["gpu"]) if copy_bytes is None else copy_bytes
    rate = max(2 * side**3 / _product_seconds(side, dtype, repeats) for side in sides)
    return Ceilings(rate, 2 * copy_bytes / _copy_seconds(copy_bytes, repeats))


def _product_seconds(side: int, dtype: Any, repeats: int) -> float:
    a = jnp.full((side, side), 1 / side, dtype)
    product = jax.jit(jnp.matmul)
    return _best(lambda x: product(x, a), a, repeats)


def _copy_seconds(size: int, repeats: int) -> float:
    x = jnp.zeros(size // 4, jnp.float32)
    # in place: otherwise the system's first touch of new memory is timed, and not the copy
    return _best(jax.jit(lambda x: x + 1, donate_argnums=0), x, repeats)


def _best(run: Any, x: Array, repeats: int) -> float:
    """The seconds of a call x = run(x), in the fastest of several rounds, after two to warm up."""
    best, calls = float("inf"), CALLS.get(jax.default_backend(), CALLS["gpu"])
    for i in range(repeats + 2):
        began = time.perf_counter()
        for _ in range(calls):
            x = run(x)
        jax.block_until_ready(x)
        if i >= 2:
            best = min(best, (time.perf_counter() - began) / calls)
    return best
