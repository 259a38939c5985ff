# SPDX-License-Identifier: MIT
"""PEFT's configuration of an adapter -> the scale of each module, alpha / r.

It lies in the file's metadata, where diffusers puts the component before each key
("unet.lora_alpha"), or beside the file in PEFT's adapter_config.json. Mirrors peft.LoraConfig,
LoHaConfig and LoKrConfig, and get_pattern_key of peft.utils.other: the first key of a pattern that
fits a name counts.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen import fields, files
from jaxgen.adapters.spellings import Module
from jaxgen.weights.tensors import Tensor

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"  # diffusers' entry of a file's metadata
ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}  # peft_type -> key of alpha
# any of them describes an adapter
KEYS = ("r", "lora_alpha", "alpha", "alpha_pattern", "rank_pattern", "use_rslora")
DEFAULT = 8  # of alpha and of r, in PEFT
MOST_PATTERNS, MOST_CHARACTERS = 4096, 200  # of a key; models have shorter names, and fewer
# what a key may be made of: signs of names, others for any sign or digit, and repeated ones
_ATOM = re.compile(r"(\\\.|\\d|\.|[\w-])([+*]?)", re.ASCII)
_REPEATED = (".*", ".+", "\\d+")
SUPPORTED = r"a name, or one with \., .*, .+, \d or \d+, with ^ before and $ behind it or not"

Atom = tuple[str, str]  # a sign, and how often: once "", at least once "+", any number "*"


class Factors(NamedTuple):
    """What a module's tensors say of the scale by themselves."""

    kind: str  # of ALPHAS
    rank: int  # 0 where two whole factors of LoKr have none
    has_norms: bool = False  # of DoRA


class Pattern(NamedTuple):
    """A key of a pattern as its signs, for all names or for whole ones, and its number."""

    atoms: list[Atom]
    is_whole: bool
    value: float


class Scaling(NamedTuple):
    """What the configuration says of the scales of one component."""

    kind: str
    alpha: float
    rank: float
    alphas: list[Pattern]
    ranks: list[Pattern]
    is_stabilised: bool  # arXiv:2312.03732: alpha / sqrt(r)


def read(file: Path, metadata: Mapping[str, str], is_beside: bool) -> dict[str, Any]:
    """Reads the configuration from the file's metadata, or from beside the file; {} if none."""
    if METADATA in metadata:
        return files.parse_object(metadata[METADATA].encode(), f"{METADATA} of {file}")
    beside = file.parent / CONFIG
    return files.read_object(beside) if is_beside and beside.is_file() else {}


def factors_of(parts: Mapping[str, Tensor]) -> Factors | None:
    """Reads the kind and the rank of a module's tensors; None where they have neither."""
    kinds = {"LORA": ("down",), "LOHA": ("hada_w1_b",), "LOKR": ("lokr_w2_b", "lokr_w1_b")}
    for kind, names in kinds.items():
        shape = next((parts[name].shape for name in names if name in parts), ())
        if shape or (kind == "LOKR" and "lokr_w1" in parts):
            has_norms = not {"magnitude", "magnitude_out"}.isdisjoint(parts)
            return Factors(kind, shape[0] if shape else 0, has_norms)
    return None


def scales(config: Mapping[str, Any], factors: Mapping[Module, Factors]) -> dict[Module, float]:
    """The scale of every module that the configuration speaks of.

    Raises ValueError for values that are no numbers, for patterns that are not SUPPORTED, and for a
    kind of adapter that is not implemented.
    """
    result: dict[Module, float] = {}
    for component in dict.fromkeys(module.component for module in factors):
        own = {module: f for module, f in factors.items() if module.component == component}
        scaling = _scaling(component, config, any(f.has_norms for f in own.values()))
        if scaling is not None:
            result |= {
                module: _scale(module.name, f.rank, scaling)
                for module, f in own.items()
                if f.kind == scaling.kind
            }
    return result


def _scaling(component: str, config: Mapping[str, Any], has_norms: bool) -> Scaling | None:
    """Reads what is said of a component; None for nothing. has_norms: whether DoRA's are there."""
    prefix = f"{component}."
    own = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
    own = own if any(key in own for key in KEYS) else dict(config)
    if not any(key in own for key in KEYS):
        return None
    kind = own.get("peft_type") or "LORA"
    is_abba = str(own.get("init_weights")).lower() == "abba" or _flag(own, "use_khatri_rao")
    if not isinstance(kind, str) or kind not in ALPHAS or is_abba:
        raise ValueError(
            f"the adapter of {component} is {fields.shown(kind)} with init_weights "
            f"{fields.shown(own.get('init_weights'))} in PEFT; jaxgen implements "
            f"{', '.join(ALPHAS)}, without ABBA. Merge it into the model with PEFT"
        )
    if kind == "LORA" and _flag(own, "use_dora") and not has_norms:
        raise ValueError(
            f"use_dora of {component} is true, and the file has no lora_magnitude_vector; fetch "
            "or export it again"
        )
    key = ALPHAS[kind]
    return Scaling(
        kind,
        _number(f"{key} of {component}", own.get(key, DEFAULT)),
        _rank(f"r of {component}", own.get("r", DEFAULT)),
        _patterns(component, own, "alpha_pattern", _number),
        _patterns(component, own, "rank_pattern", _rank),
        kind == "LORA" and _flag(own, "use_rslora"),
    )


def _flag(own: Mapping[str, Any], name: str) -> bool:
    """Reads what is true or false; null and "auto" are PEFT's own choice, which is false."""
    value = own.get(name)
    if value in (None, "auto") or isinstance(value, bool):
        return value is True
    raise ValueError(f"{name} is {json.dumps(value)[:80]}; expected true or false")


def _number(what: str, value: Any) -> float:
    if fields.is_number(value) and abs(value) <= 1e30:  # Python's integers have no end
        return float(value)
    raise ValueError(f"{what} is {json.dumps(value)[:80]}; expected a finite number")


def _rank(what: str, value: Any) -> float:
    if fields.is_number(value) and 1 <= value <= 1e6 and value == int(value):
        return float(value)
    raise ValueError(f"{what} is {json.dumps(value)[:80]}; expected a whole number, at least 1")


def _patterns(
    component: str, own: Mapping[str, Any], name: str, read: Callable[[str, Any], float]
) -> list[Pattern]:
    """Reads the patterns of a component in their order; `read` checks the number of each."""
    found = own.get(name) or {}
    if not isinstance(found, dict) or len(found) > MOST_PATTERNS:
        raise ValueError(
            f"{name} of {component} is {json.dumps(found)[:80]}; expected an object of at most "
            f"{MOST_PATTERNS} names with a number each"
        )
    return [
        _pattern(name, key, read(f"{name} of {fields.shown(key)}", value))
        for key, value in found.items()
    ]


def _pattern(name: str, key: str, value: float) -> Pattern:
    """Reads a key of a pattern; PEFT takes any regular expression, which may run for ever."""
    inner = key.removeprefix("^").removesuffix("$")
    matches = list(_ATOM.finditer(inner)) if len(inner) <= MOST_CHARACTERS else []
    repeated = {match[0] for match in matches if match[2]}
    if not inner or "".join(m[0] for m in matches) != inner or repeated.difference(_REPEATED):
        raise ValueError(
            f"{name} has the key {fields.shown(key)}; expected {SUPPORTED}, in at most "
            f"{MOST_CHARACTERS} characters. Write out the names in the file's configuration"
        )
    atoms = [(match[1], match[2]) for match in matches]
    return Pattern(atoms, key.startswith("^"), value)


def _scale(name: str, rank: int, scaling: Scaling) -> float:
    alpha = _of_name(name, scaling.alphas, scaling.alpha)
    r = rank or _of_name(name, scaling.ranks, scaling.rank)
    return alpha / (math.sqrt(r) if scaling.is_stabilised else r)


def _of_name(name: str, patterns: list[Pattern], default: float) -> float:
    return next((pattern.value for pattern in patterns if _fits(pattern, name)), default)


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
