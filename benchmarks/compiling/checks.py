# SPDX-License-Identifier: MIT
"""What both scripts that compile refuse before they compile anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import training
from jaxgen.nn import quantized
from jaxgen.runs import plan

Names = Sequence[str]
KINDS = ("none", *quantized.KINDS, quantized.W8A8)


def check(config: Any, named: Mapping[str, tuple[Names, Names]]) -> None:
    """Raises ValueError for an option out of range, and for names that are absent or unknown.

    named: by what they are, the names that were given beside axes and kinds, and the known ones.
    """
    common = {
        "axis": (config.axes, ("data", "model")),
        "kind of kernels": (config.quantize, KINDS),
    }
    for what, (names, known) in {**named, **common}.items():
        if not names:
            raise ValueError(f"no {what} is named; use one or more of {', '.join(known)}")
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; use {', '.join(known)}")
    plan.check_range(config, 1, "batch_size", high=training.NUM_IMAGES)
    plan.check_range(config, 1, "images", high=256)  # inputs of a batch are arrays of this process
    plan.check_range(config, 1, "num_steps", high=1000)
