# SPDX-License-Identifier: MIT
"""The costs of a program by the compiler: arithmetic, memory traffic, memory, collectives."""

import re
from collections import Counter
from typing import Any, NamedTuple

from jaxgen.measure import hlo

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(
    rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\("  # "= f32[64,10]{{1,0}} all-reduce("
)


class Cost(NamedTuple):
    """The costs of one call of a program on one device. The body of a loop is counted once."""

    flops: float  # before the compiler optimises, so that nothing hides in a library call
    bytes_accessed: float  # read and written by all fused operations, in caches or not
    argument_bytes: int
    output_bytes: int  # alias_bytes of them lie in the arguments' memory
    temporary_bytes: int
    alias_bytes: int
    code_bytes: int
    collectives: dict[str, int]  # number by kind
    collective_bytes: int  # of their results on one device

    @property
    def peak_bytes(self) -> int:
        """The memory of one device that the program needs while it runs."""
        return (
            self.argument_bytes + self.output_bytes + self.temporary_bytes - self.alias_bytes
            + self.code_bytes
        )  # fmt: skip


def cost(lowered: Any, compiled: Any) -> Cost:
    """The cost of a program: `lowered` is jax.jit(f).lower(...), `compiled` its .compile()."""
    before, after = lowered.cost_analysis() or {}, compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    kinds, result_bytes = collectives(compiled.as_text())
    return Cost(
        flops=before.get("flops", after.get("flops", 0.0)),
        bytes_accessed=after.get("bytes accessed", 0.0),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        collectives=kinds,
        collective_bytes=result_bytes,
    )


def collectives(program: str) -> tuple[dict[str, int], int]:
    """The number of collectives by kind and the bytes of their results, in a compiled program."""
    kinds: Counter[str] = Counter()
    result_bytes = 0
    for shape, kind in _COLLECTIVE.findall(program):
        kinds[kind] += 1
        result_bytes += hlo.size(shape)
    return dict(kinds), result_bytes
