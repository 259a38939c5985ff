# SPDX-License-Identifier: MIT
"""Sound safetensors files of other names, shapes and types than a model has."""

import json
import random
import re
import struct

from fuzz.json_values import CONTROL

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_MOST_BYTES = 2**24
_MANY = 20_000  # tensors more
Entries = dict[str, tuple[str, list[int]]]  # name -> type, shape


def mutate(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A file with one change to its list of tensors, whose values are all zero."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    entries = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    name = rng.choice([*entries])
    change = rng.choice(["shape", "type", "rename", "number", "prefix", "remove"] * 4 + ["many"])
    _apply(rng, entries, name, change)
    return _written(entries), f"{change} of {ascii(name)[:80]}"


def _apply(rng: random.Random, entries: Entries, name: str, change: str) -> None:
    dtype, shape = entries[name]
    match change:
        case "shape":
            entries[name] = (dtype, _shape(rng, list(shape)))
        case "type":
            entries[name] = (rng.choice([*_ITEM_BYTES]), shape)
        case "rename":
            entries[rng.choice(["", "x", CONTROL, "a" * 2000, name + ".y"])] = entries.pop(name)
        case "number":
            number = rng.choice(["-1", "7", "99999999", "9" * 5000, "x", ""])
            entries[re.sub(r"\d+", number, name, count=1)] = entries.pop(name)
        case "prefix":
            prefix = name[: rng.randrange(len(name) + 1)]
            moved = rng.choice(["", "model.", "x."])
            for old in [other for other in entries if other.startswith(prefix)]:
                entries[moved + old.removeprefix(prefix)] = entries.pop(old)
        case "remove":
            parts = name.split(".")
            prefix = ".".join(parts[: rng.randrange(1, len(parts) + 1)])
            for old in [other for other in entries if other.startswith(prefix)]:
                del entries[old]
        case _:
            numbers = ((re.sub(r"\d+", str(i), name, count=1), i) for i in range(_MANY))
            entries |= {f"{new}{'' if new != name else i}": ("U8", [0]) for new, i in numbers}


def _shape(rng: random.Random, shape: list[int]) -> list[int]:
    """Another shape: an axis more, less, longer or empty, or axes in another order."""
    axis = rng.randrange(len(shape)) if shape else 0
    match rng.choice(["scale", "scale", "insert", "remove", "reverse", "many"]):
        case "scale" if shape:
            shape[axis] = max(0, shape[axis] * rng.choice([0, 1, 2, 3]) + rng.choice([0, 1, -1]))
        case "remove" if shape:
            del shape[axis]
        case "reverse":
            shape.reverse()
        case "many":
            shape += [1] * 70
        case _:
            shape.insert(axis, rng.choice([0, 1, 2]))
    return shape


def _written(entries: Entries) -> bytes:
    header, offset = {}, 0
    for name, (dtype, shape) in entries.items():
        end = offset + _ITEM_BYTES[dtype]
        for size in shape:
            end = offset + (end - offset) * size
        if end > _MOST_BYTES:
            shape, end = [0], offset
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)
