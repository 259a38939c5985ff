# SPDX-License-Identifier: MIT
"""Damage to bytes of any kind: flips, cuts, doublings, insertions, other numbers."""

import random

from fuzz.json_values import CONTROL

_NUMBERS = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff" * 8, b"\0\0\0\x80", b"\x01\0\0\0"]
_INSERTED = [
    *_NUMBERS, CONTROL.encode(), b"\n" * 5000, b"\xff\xfe", b"\xed\xa0\x80", b'"', b"}", b"\0",
    b"A" * 300_000,
]  # fmt: skip


def mutate(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """The bytes with one change, and what was changed."""
    kinds = ["flip", "flip", "truncate", "remove", "double", "insert", "overwrite", "swap", "line"]
    change = rng.choice(kinds)
    # headers are short, and what they say matters most
    start = rng.randrange(min(len(data), 200) + 1 if rng.random() < 0.5 else len(data) + 1)
    stop = min(len(data), start + rng.choice([1, 2, 4, 8, 100, len(data)]))
    part, done = data[start:stop], f"{change} at {start} to {stop} of {len(data)}"
    match change:
        case "flip":
            flipped = bytes(b ^ (1 << rng.randrange(8)) for b in part[:8])
            return data[:start] + flipped + data[start + len(flipped) :], done
        case "truncate":
            return data[:start], done
        case "remove":
            return data[:start] + data[stop:], done
        case "double":
            times = rng.choice([1, 1, 2, 1000]) if len(part) <= 300 else 1
            return data[:stop] + part * times + data[stop:], f"{done}, {times} times"
        case "insert":
            return data[:start] + rng.choice(_INSERTED) + data[start:], done
        case "overwrite":
            number = rng.choice(_NUMBERS)
            return data[:start] + number + data[start + len(number) :], done
        case "swap":
            return data[start:] + data[:start], done
    return _line(rng, data), "a line removed, doubled or cut"


def _line(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    cut = lines[i][: rng.randrange(len(lines[i]) + 1)]
    lines[i : i + 1] = rng.choice([[], [lines[i]] * 2, [cut], [cut, lines[i]]])
    return b"\n".join(lines)
