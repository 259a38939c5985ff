# SPDX-License-Identifier: MIT
"""Which adapters, and how strongly: what a caller or a command line says of them."""

import math
from pathlib import Path

WHERE = ("unet", "text", "text_encoder", "text_encoder_2")
SPEC = 'a path, (path, strength) or (path, strength, {"text": 0.5}), with finite numbers'
Spec = str | Path | tuple  # a path, (path, strength), or (path, strength, {component: factor})


def parts_of(entry: Spec) -> tuple[str | Path, float, dict[str, float]]:
    """Checks one entry of the list of adapters, and fills in what it leaves out."""
    match entry:
        case str() | Path() as path:
            strength, factors = 1.0, {}
        case [str() | Path() as path, strength]:
            factors = {}
        case [str() | Path() as path, strength, dict() as factors]:
            pass
        case _:
            raise ValueError(f"an adapter is {entry!r:.200}; give {SPEC}")
    numbers = [strength, *factors.values()]
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in numbers) or not all(
        map(math.isfinite, numbers)
    ):
        raise ValueError(f"the strengths of adapter {path} are {numbers!r:.200}; give {SPEC}")
    unknown = sorted(str(key) for key in factors if key not in WHERE)
    if unknown:
        raise ValueError(
            f"adapter {path} has a strength for {', '.join(unknown)}; use {', '.join(WHERE)}"
        )
    return path, float(strength), factors


def from_text(text: str) -> tuple[str, float]:
    """Reads FILE or FILE:STRENGTH of a command line; the strength is 1 where it is not given."""
    path, colon, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # a colon of the path's own
