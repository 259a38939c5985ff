# SPDX-License-Identifier: MIT
"""What the device can give: the fastest matrix product and the fastest copy it can be made to do.

Measured in the same run as the candidates, so a fraction of the limit is one of this machine, at
its present clock, and not of a data sheet.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.types import Array

# sides of the square matrices, and bytes of the array that is copied: enough to fill the device
SIDES = {"cpu": (1024, 2048), "gpu": (4096, 8192, 12288), "tpu": (4096, 8192)}
COPIED = {"cpu": 2**27, "gpu": 2**30, "tpu": 2**30}
# one after the other before the host waits, so that its waiting takes no share
CALLS = {"cpu": 1, "gpu": 10, "tpu": 10}


class Ceilings(NamedTuple):
    """Of one device."""

    flops_per_second: float  # of matrix products of one dtype
    bytes_per_second: float  # read and written


def measure(
    dtype: Any, sides: Sequence[int] | None = None, copied: int | None = None, repeats: int = 5
) -> Ceilings:
    """The ceilings of the first device for products in `dtype`, the best of `repeats`.

    sides, copied: the sizes that are tried; by default those of the backend.
    """
    backend = jax.default_backend()
    sides = SIDES.get(backend, SIDES["gpu"]) if sides is None else sides
    copied = COPIED.get(backend, COPIED["gpu"]) if copied is None else copied
    products = max(2 * side**3 / _product_seconds(side, dtype, repeats) for side in sides)
    return Ceilings(products, 2 * copied / _copy_seconds(copied, repeats))


def _product_seconds(side: int, dtype: Any, repeats: int) -> float:
    a = jnp.full((side, side), 1 / side, dtype)
    product = jax.jit(jnp.matmul)
    return _best(lambda x: product(x, a), a, repeats)


def _copy_seconds(size: int, repeats: int) -> float:
    x = jnp.zeros(size // 4, jnp.float32)
    # in place: otherwise the first touch of fresh memory is timed, and not the copy
    return _best(jax.jit(lambda x: x + 1, donate_argnums=0), x, repeats)


def _best(run: Any, x: Array, repeats: int) -> float:
    """Seconds of a call x = run(x), in the fastest of several rounds, after two to warm up."""
    best, calls = float("inf"), CALLS.get(jax.default_backend(), CALLS["gpu"])
    for i in range(repeats + 2):
        began = time.perf_counter()
        for _ in range(calls):
            x = run(x)
        jax.block_until_ready(x)
        if i >= 2:
            best = min(best, (time.perf_counter() - began) / calls)
    return best
