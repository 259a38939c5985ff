# SPDX-License-Identifier: MIT
"""Odd values for the arguments of a call, and what is wrong with how a function takes them."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

MOST_CHARACTERS = 1000  # of a message


class Unprintable:
    """An object whose text cannot be had."""

    def __repr__(self):
        raise RuntimeError("no text")


class Rude:
    """An object whose text commands the terminal."""

    def __repr__(self):
        return "\x1b[2J\u202e\n" * 50


ODD = {
    "none": None, "true": True, "np.false": np.bool_(False), "empty text": "", "text": "x",
    "number as text": "7", "control text": "a\x1b[2J\u202e\nb", "null": "a\0b", "lone": "\ud800",
    "long text": "x" * 5000, "bytes": b"x", "path": pathlib.Path("no/such"), "zero": 0,
    "minus one": -1, "half": 0.5, "ten thousand": 10_000, "2**31": 2**31, "2**64": 2**64,
    "10**400": 10**400, "10**5000": 10**5000, "nan": float("nan"), "inf": float("inf"),
    "-inf": -float("inf"), "1e308": 1e308, "complex": 1j, "np.nan": np.float32("nan"),
    "np.float": np.float32(0.5), "np.int": np.int64(3), "np.str": np.str_("x"),
    "date": np.datetime64("2020"), "0-d": np.array(3), "0-d float": np.array(0.5),
    "0-d object": np.array(None), "list": [], "tuple": (), "of none": [None], "of itself": [[]],
    "of text": ["x", "y"], "of numbers": [1, 2], "ragged": [1, [2, 3]], "mixed": [1, "x", None],
    "dict": {}, "dict of": {"x": 1}, "set": {1}, "range": range(3), "generator": (i for i in "ab"),
    "object": object(), "unprintable": Unprintable(), "rude": Rude(), "class": int, "module": np,
    "function": len, "lambda": lambda *values: values, "0 rows": np.zeros((0, 4)),
    "objects": np.array([None, "a"], object), "texts": np.array(["a", "b"]),
    "matrix": np.ones((20, 20)), "5 axes": np.zeros((1, 1, 1, 1, 1)),
    "not finite": np.full((8, 8, 3), np.nan), "structured": np.zeros(3, [("a", int)]),
    "picture": Image.new("RGB", (16, 16)), "thin picture": Image.new("L", (16, 1)),
}  # fmt: skip


def faults(names: list[str], call: Callable[..., Any], prefix: str = "") -> list[str]:
    """Says what is wrong with how `call` takes each odd value for each of its arguments."""
    found = []
    for name in names:
        for kind, value in ODD.items():
            complaint = _complaint(call, name, value)
            if complaint:
                found.append(f"{prefix}{name} = {kind}: {complaint}")
    return found


def _complaint(call: Callable[..., Any], name: str, value: Any) -> str:
    try:
        call(**{name: value})
    except ValueError as error:
        message = str(error)
        if isinstance(error, UnicodeError):
            return f"raises {type(error).__name__}"
        if not all(line.isprintable() for line in message.split("\n")):
            return f"has a message with raw control characters: {ascii(message)[:200]}"
        if len(message) > MOST_CHARACTERS:
            return f"has a message of {len(message)} characters"
        if "digits) for integer string" in message:
            return "has a message of Python's about its own message"
    except Exception as error:
        return f"raises {type(error).__name__}: {ascii(str(error))[:200]}"
    return ""
