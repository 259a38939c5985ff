# SPDX-License-Identifier: MIT
"""Which adapters, and how strongly: what a caller or a command line says of them."""

from collections.abc import Sequence
from pathlib import Path

from jaxgen import fields, files

_LARGEST = 3e38  # beyond it a float32 is infinite
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
            raise ValueError(f"an adapter is {fields.shown(entry)}; give {SPEC}")
    numbers = fields.plain([strength, *factors.values()])
    if not all(fields.is_number(x) and abs(x) <= _LARGEST for x in numbers):
        raise ValueError(
            f"the strengths of adapter {files.printable(path)} are {fields.shown(numbers)}; "
            f"give {SPEC}"
        )
    unknown = sorted(str(key) for key in factors if key not in WHERE)
    if unknown:
        raise ValueError(
            f"adapter {files.printable(path)} has a strength for {fields.shown(unknown)}; "
            f"use {', '.join(WHERE)}"
        )
    return path, float(numbers[0]), dict(zip(factors, map(float, numbers[1:]), strict=True))


def rows_from_text(texts: Sequence[str], num_prompts: int, num_adapters: int) -> list[list[float]]:
    """Reads weights such as "1,0.5" of a command line: for each prompt one for each adapter."""
    try:
        rows = [[float(number) for number in text.split(",")] for text in texts]
    except ValueError:
        rows = []
    if len(rows) != num_prompts or any(len(row) != num_adapters for row in rows):
        raise ValueError(
            f"--lora-rows is {fields.shown(' '.join(texts))}; give for each of the {num_prompts} "
            f"prompts {num_adapters} numbers with commas, one for each file of --lora, as 1,0.5"
        )
    return rows


def from_text(text: str) -> tuple[str, float]:
    """Reads FILE or FILE:STRENGTH of a command line; the strength is 1 where it is not given."""
    path, colon, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0  # a colon of the path's own
