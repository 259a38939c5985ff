# SPDX-License-Identifier: MIT
"""Configs from files are checked against a table of fields before anything is built from them.

    TABLE = {
        "num_heads": fields.integer(8, 1, 64),
        "widths": fields.items((64, 128), fields.integer(64, 8, 4096, multiple_of=8), most=8),
        "act": fields.choice("silu", "silu", "gelu"),
    }
    values = fields.check(TABLE, config, "unet/config.json", rules=(...))

Any JSON value may stand in a config. A bool is not a number here, 2.0 is not an integer, and NaN
and the infinities lie in no range.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

NAMED_FAULTS = 12  # an error names so many faults at most
QUOTED = 80  # characters of a foreign value that a message shows


class Field(NamedTuple):
    """A key of a config: the value of an absent key, which values it may have, those in words."""

    default: Any
    accepts: Callable[[Any], bool]
    words: str  # after "expected"


class Rule(NamedTuple):
    """A condition on several fields; it is tried once each of them is accepted for itself."""

    holds: Callable[[Mapping[str, Any]], bool]
    words: str  # after "but"


def check(
    table: Mapping[str, Field], config: Any, where: str, rules: Sequence[Rule] = ()
) -> dict[str, Any]:
    """The value of every field of the table: the config's, or the default where it has none.

    Keys of the config that are not in the table are left to the caller. where: the file or the
    class, for the message. Raises one ValueError with all faults.
    """
    if not isinstance(config, Mapping):
        raise ValueError(
            f"{where} is a {type(config).__name__}; expected a mapping of keys to values"
        )
    faults = [
        f"{key}={shown(config[key])}, expected {field.words}"
        for key, field in table.items()
        if key in config and not field.accepts(config[key])
    ]
    values = {key: config.get(key, field.default) for key, field in table.items()}
    if not faults:
        faults = [rule.words for rule in rules if not rule.holds(values)]
    if faults:
        more = len(faults) - NAMED_FAULTS
        rest = [f"and {more} more"] if more > 0 else []
        text = " | ".join([*faults[:NAMED_FAULTS], *rest])
        raise ValueError(f"{where} has values that are wrong or not implemented: {text}")
    return values


def shown(value: Any) -> str:
    """A foreign value as it may stand in a message: escaped, on one line, at most 80 characters."""
    try:
        text = " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python writes out no integer of more than 4300 digits
        text = "an integer of thousands of digits"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: QUOTED + 1])
    return text if len(text) <= QUOTED else text[: QUOTED - 3] + "..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = QUOTED
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8


def integer(default: Any, least: int, most: int, multiple_of: int = 1) -> Field:
    """A whole number from `least` to `most`."""

    def accepts(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and least <= value <= most and value % multiple_of == 0

    kind = "an integer" if multiple_of == 1 else f"a multiple of {multiple_of}"
    return Field(default, accepts, f"{kind} from {least} to {most}")


def number(default: Any, least: float, most: float) -> Field:
    """A number, whole or not, from `least` to `most`."""
    return Field(
        default, lambda v: is_number(v) and least <= v <= most, f"a number from {least} to {most}"
    )


def flag(default: Any) -> Field:
    """True or false."""
    return Field(default, lambda v: isinstance(v, bool), "true or false")


def choice(default: Any, *values: Any) -> Field:
    """One of a few values. 1.0 counts as 1, as in JSON; true does not."""

    def same(value: Any, known: Any) -> bool:
        alike = is_number(value) and is_number(known)
        return (alike or type(value) is type(known)) and value == known

    *first, last = map(repr, values)
    words = f"{', '.join(first)} or {last}" if first else last
    return Field(default, lambda v: any(same(v, known) for known in values), words)


def items(default: Any, item: Field, least: int = 1, most: int = 8) -> Field:
    """A list of `least` to `most` entries, each of which `item` accepts."""

    def accepts(value: Any) -> bool:
        listed = isinstance(value, list | tuple) and least <= len(value) <= most
        return listed and all(map(item.accepts, value))

    length = f"{most}" if least == most else f"{least} to {most}"
    return Field(default, accepts, f"a list of {length} entries, each {item.words}")


def either(default: Any, *fields: Field) -> Field:
    """What any of the given fields accepts."""
    words = ", or ".join(field.words for field in fields)
    return Field(default, lambda v: any(field.accepts(v) for field in fields), words)


def optional(field: Field) -> Field:
    """The given field, or null."""
    return Field(field.default, lambda v: v is None or field.accepts(v), f"{field.words}, or null")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """Returns NumPy's and JAX's single numbers as Python's, also in a list; all else stays."""
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    is_single = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    dtype = getattr(value, "dtype", None)
    is_numeric = getattr(dtype, "kind", "") in tuple("biuf") or str(dtype) == "bfloat16"
    return value.item() if is_single and is_numeric else value
