# SPDX-License-Identifier: MIT
"""JSON values that a reader does not expect, put anywhere into a JSON text."""

import json
import random
from typing import Any

DEEP = 10_000  # levels
CONTROL = "\x1b[31mred\x07\u202egnp.\u2066\u200b\x00\r\n\u2028\x9b"
_RAW = {  # texts that json.dumps would not write, by the string that stands in for them
    "raw deep list": "[" * DEEP + "]" * DEEP,
    "raw deep object": '{"a":' * DEEP + "1" + "}" * DEEP,
    "raw unclosed": "[" * DEEP,
    "raw infinity": "-Infinity",
    "raw nan": "NaN",
    "raw large float": "1e999",
    "raw many digits": "9" * 5000,
    "raw surrogate": '"\\ud800"',
    "raw repeated keys": "{" + ",".join(['"k": 0'] * 60_000) + "}",
}
_SCALARS = [
    None, True, False, 0, 1, -1, 2, 5, 7, 2**31, -(2**31), 2**32 + 1, 2**63, 10**30, -(10**18),
    0.0, -0.0, 0.5, 2.0, 1e-300, -1e30, 0.9999999, "", "x", "../../x", "/dev/zero", "\0", CONTROL,
    "é" * 300, "a" * 100_000, [], {}, [[]], [None], [0], [-1], [True], ["x"], {"x": 1}, [1] * 70,
    [1, "x", None], list(range(5000)), {"content": 5}, {"type": "x"},
]  # fmt: skip


def mutate(rng: random.Random, text: str) -> tuple[str, str]:
    """The JSON text with one change, and what was changed; other text is returned as it is."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        return text, "is no JSON"
    places = list(_places(root))
    if not places or rng.random() < 0.05:
        value = _value(rng)
        return _dumps(value), f"whole = {_short(value)}"
    parent, key = rng.choice(places)
    change = rng.choice(["replace"] * 6 + ["scale", "remove", "rename", "add", "repeat", "copy"])
    done = f"{change} {_short(key)}"
    match change:
        case "replace":
            parent[key] = _value(rng)
            done += f" = {_short(parent[key])}"
        case "scale":
            parent[key] = _scaled(rng, parent[key])
            done += f" = {_short(parent[key])}"
        case "remove":
            del parent[key]
        case "copy":
            other, name = rng.choice(places)
            parent[key] = json.loads(json.dumps(other[name]))  # apart, or it could hold itself
        case "rename" if isinstance(parent, dict):
            parent[_name(rng)] = parent.pop(key)
        case "repeat" if isinstance(parent, dict):
            return _dumps(root).replace("{", f"{{{json.dumps(str(key))}: 0, ", 1), done
        case _ if isinstance(parent, dict):
            parent[_name(rng)] = _value(rng)
        case _:
            parent.insert(rng.randrange(len(parent) + 1), _value(rng))
    return _dumps(root), done


def _places(node: Any):
    """Every (parent, key) below a node."""
    if not isinstance(node, dict | list):
        return
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        yield from _places(value)


def _value(rng: random.Random) -> Any:
    return rng.choice([*_SCALARS, *_RAW])


def _name(rng: random.Random) -> str:
    return rng.choice(["", "x", "a" * 5000, CONTROL, "../x", "__class__", "_class_name", "\ud800"])


def _scaled(rng: random.Random, value: Any) -> Any:
    """A neighbour of a value: a number a little or far off, a list one shorter or longer."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * rng.choice([-1, 0, 2, 3, 1000, 10**9]) + rng.choice([0, 0, 1, -1])
        case str():
            return value[: rng.randrange(len(value) + 1)] + rng.choice(["", "x", CONTROL])
        case list():
            return value[:-1] if rng.random() < 0.5 else value + value
    return [value]


def _dumps(value: Any) -> str:
    text = json.dumps(value)
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def _short(value: Any) -> str:
    return ascii(value)[:40]
