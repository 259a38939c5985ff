# SPDX-License-Identifier: MIT
"""A roofline box: images/s predicted from a program's arithmetic and bytes, then measured.

Williams, Waterman & Patterson 2009 (Communications of the ACM 52): no program is faster than its
arithmetic at the device's highest rate, nor than its memory traffic at the highest bandwidth.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import quick
from jaxgen.measure import ceilings, cost, products, turns


class Roof(NamedTuple):
    """What one call of a program costs, and what the device can do."""

    flops: float  # of matrix products and convolutions
    bytes: float  # read and written by all fused operations
    peak: ceilings.Ceilings
    images: int  # of one call

    @property
    def seconds(self) -> tuple[float, float]:
        """Arithmetic and memory traffic of a call, in seconds at the device's highest rates."""
        return self.flops / self.peak.flops_per_second, self.bytes / self.peak.bytes_per_second

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.seconds)


def predict(fn: Callable[..., Any], *args: Any, images: int) -> Roof:
    """Counts the costs of fn(*args), which handles `images` images, and measures the ceilings."""
    lowered = (fn if hasattr(fn, "lower") else jax.jit(fn)).lower(*args)
    traffic = cost.cost(lowered, lowered.compile()).bytes_accessed
    peak = ceilings.measure(jnp.float32)
    roof = Roof(products.flops(fn, *args), traffic, peak, images)
    arithmetic, memory = (1000 * seconds for seconds in roof.seconds)
    print(f"one call: {roof.flops / 1e9:.3f} GFLOP, {roof.bytes / 1e6:.1f} MB, {images} images")
    print(f"the device: {peak.flops_per_second / 1e9:.0f} GFLOP/s", end=", ")
    print(f"{peak.bytes_per_second / 1e9:.1f} GB/s")
    print(f"at least {arithmetic:.2f} ms of arithmetic, {memory:.2f} ms of memory traffic")
    bound = "arithmetic" if arithmetic > memory else "memory"
    print(f"predicted: at most {roof.images_per_second:,.0f} images/s, limited by {bound}")
    return roof


def compare(roof: Roof, call: Callable[[], Any], seconds: float = 2.0) -> float:
    """Times `call`, the predicted program, in turns; prints and returns its images/s."""

    def run(count: int) -> None:
        for _ in range(count):
            output = call()
        jax.block_until_ready(output)

    timed = turns.take_turns(
        {"call": turns.Candidate(run)}, 1 if quick.ON else 5, 0.02 if quick.ON else seconds / 5
    )
    rate = roof.images / turns.spread(timed["call"]).median
    share = rate / roof.images_per_second
    print(f"measured: {rate:,.0f} images/s, {100 * share:.0f} % of the prediction")
    return rate
