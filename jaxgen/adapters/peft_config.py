# SPDX-License-Identifier: MIT
"""PEFT's configuration of an adapter -> the scale of each module, alpha / r.

It lies in the file's metadata, where diffusers puts the component before each key
("unet.lora_alpha"), or beside the file in PEFT's adapter_config.json. Mirrors peft.LoraConfig and
get_pattern_key of peft.utils.other: the first key of `alpha_pattern` that fits a name counts.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import fields, files
from jaxgen.adapters.spellings import Module

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"  # diffusers' entry of a file's metadata
KEYS = ("r", "lora_alpha", "alpha_pattern", "use_rslora")  # any of them describes a LoRA
ALPHA = 8  # PEFT's default
MOST_PATTERNS, MOST_CHARACTERS = 4096, 200  # of a key; models have shorter names, and fewer
# what a key may be made of: escaped and repeated signs, and those of names
_ATOM = re.compile(r"(\\\.|\\d|\.|[\w-])([+*]?)", re.ASCII)
_REPEATED = (".*", ".+", "\\d+")
SUPPORTED = r"a name, or one with \., .*, .+, \d or \d+, and ^ before it"

Atom = tuple[str, str]  # a sign, and how often: once "", at least once "+", any number "*"


class Pattern(NamedTuple):
    """A key of alpha_pattern as its signs, for all names or for whole ones, and its alpha."""

    atoms: list[Atom]
    is_whole: bool
    alpha: float


class Scaling(NamedTuple):
    """What the configuration says of the scales of one component."""

    alpha: float
    patterns: list[Pattern]
    is_stabilised: bool  # arXiv:2312.03732: alpha / sqrt(r)


def read(file: Path, metadata: Mapping[str, str], is_beside: bool) -> dict[str, Any]:
    """Reads the configuration from the file's metadata, or from beside the file; {} if none."""
    if METADATA in metadata:
        return files.parse_object(metadata[METADATA].encode(), f"{METADATA} of {file}")
    beside = file.parent / CONFIG
    return files.read_object(beside) if is_beside and beside.is_file() else {}


def scales(config: Mapping[str, Any], ranks: Mapping[Module, int]) -> dict[Module, float]:
    """The scale of every module that the configuration speaks of, from the ranks of its tensors.

    Raises ValueError for values that are no numbers, and for patterns that are not SUPPORTED.
    """
    components = {module.component for module in ranks}
    scaling = {component: _scaling(component, config) for component in components}
    return {
        module: _scale(module.name, rank, own)
        for module, rank in ranks.items()
        if (own := scaling[module.component]) is not None and rank > 0
    }


def _scaling(component: str, config: Mapping[str, Any]) -> Scaling | None:
    prefix = f"{component}."
    own = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
    own = own if any(key in own for key in KEYS) else dict(config)
    if not any(key in own for key in KEYS):
        return None
    is_stabilised = own.get("use_rslora", False)
    if not isinstance(is_stabilised, bool):
        raise ValueError(
            f"use_rslora of {component} is {fields.shown(is_stabilised)}; expected true or false"
        )
    patterns = own.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS:
        raise ValueError(
            f"alpha_pattern of {component} is {fields.shown(patterns)}; expected an object of at "
            f"most {MOST_PATTERNS} names with a number each"
        )
    alpha = _number(f"lora_alpha of {component}", own.get("lora_alpha", ALPHA))
    return Scaling(alpha, [_pattern(*item) for item in patterns.items()], is_stabilised)


def _number(what: str, value: Any) -> float:
    if fields.is_number(value) and abs(value) <= 1e30:  # Python's integers have no end
        return float(value)
    raise ValueError(f"{what} is {json.dumps(value)[:80]}; expected a finite number")


def _pattern(key: str, alpha: Any) -> Pattern:
    """Reads a key of alpha_pattern; PEFT takes any regular expression, which may run for ever."""
    inner = key.removeprefix("^")
    matches = list(_ATOM.finditer(inner)) if len(inner) <= MOST_CHARACTERS else []
    repeated = {match[0] for match in matches if match[2]}
    if not inner or "".join(m[0] for m in matches) != inner or repeated.difference(_REPEATED):
        raise ValueError(
            f"alpha_pattern has the key {fields.shown(key)}; expected {SUPPORTED}, in at most "
            f"{MOST_CHARACTERS} characters. Write out the names in the file's configuration"
        )
    atoms = [(match[1], match[2]) for match in matches]
    value = _number(f"alpha_pattern of {fields.shown(key)}", alpha)
    return Pattern(atoms, inner != key, value)


def _scale(name: str, rank: int, scaling: Scaling) -> float:
    own = (pattern.alpha for pattern in scaling.patterns if _fits(pattern, name))
    return next(own, scaling.alpha) / (math.sqrt(rank) if scaling.is_stabilised else rank)


def _fits(pattern: Pattern, name: str) -> bool:
    r"""Tells whether PEFT's re.match(rf"(.*\.)?({key})$", name) has a match, without backtracking.

    Kept are all places of the name from which the rest of the key fits, from its end on.
    """
    places = {len(name)}
    for sign, count in reversed(pattern.atoms):
        reached, latest = (places if count == "*" else set()), places
        while latest:
            latest = {i - 1 for i in latest if i and _is(sign, name[i - 1])} - reached
            reached = reached | latest
            if not count:
                break
        places = reached
        if not places:
            return False
    return any(i == 0 or (name[i - 1] == "." and not pattern.is_whole) for i in places)


def _is(sign: str, character: str) -> bool:
    if sign == "\\d":
        return character.isdecimal()
    return sign == "." or character == sign[-1]
