# SPDX-License-Identifier: MIT
"""Prompts become token ids and weights: emphasis by brackets, texts of any length in chunks.

The notation is the one that AUTOMATIC1111's interface made common:

    (word)        1.1 times as strong, ((word)) 1.21 times
    (word:1.3)    1.3 times as strong
    [word]        1 / 1.1 as strong
    \\( \\) \\[ \\]   the bracket itself
    BREAK         ends a chunk of tokens

Brackets that are never closed hold to the end; closing ones that were never opened are text.
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgen import fields
from jaxgen.types import AnyArray
from jaxgen.weights import tokenizer as tokenizer_io
from jaxgen.weights.tokenizer import Tokenizer

STRONGER = 1.1
BREAK = re.compile(r"\bBREAK\b")
MOST_WEIGHT = 1e3  # beyond it hidden states lose all precision; a typing error
_PARTS = re.compile(
    r"\\[()\[\]\\]"  # an escaped bracket or backslash
    r"|[(\[\]]"
    r"|:\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*\)"  # ":1.3)"
    r"|\)"
    r"|[^\\()\[\]:]+|[\\:]"
)


class Chunks(NamedTuple):
    """Holds B texts as a text encoder takes them, each in K chunks of T tokens."""

    ids: AnyArray  # int32 [B, K, T], every chunk with first, last and padding tokens
    weights: AnyArray  # float32 [B, K, T], 1 where nothing is emphasised


def parse(prompt: str) -> list[tuple[str, float]]:
    """Reads a prompt as pieces of text with weights; adjacent pieces of equal weight are joined."""
    parts = _PARTS.findall(prompt)
    factors, closers = _brackets(parts)
    pieces, weights = [], [1.0]
    for place, part in enumerate(parts):
        if place in factors:
            weights.append(weights[-1] * factors[place])
        elif place in closers:
            weights.pop()
        else:
            text = part[1] if len(part) == 2 and part[0] == "\\" else part
            pieces.append((text, weights[-1]))
    return _joined(pieces)


def _brackets(parts: Sequence[str]) -> tuple[dict[int, float], set[int]]:
    """Finds the factor of each part that opens a bracket, and the parts that close one, by place.

    Those that nothing closes have the usual factor to the end.
    """
    factors: dict[int, float] = {}
    closers: set[int] = set()
    opened: list[int] = []
    for place, part in enumerate(parts):
        bracket, factor = _closed_by(part)
        if part in ("(", "["):
            opened.append(place)
        elif bracket and opened and parts[opened[-1]] == bracket:
            factors[opened.pop()] = factor
            closers.add(place)
    for place in opened:
        factors[place] = STRONGER if parts[place] == "(" else 1 / STRONGER
    return factors, closers


def tokenize(tokenizer: Tokenizer, prompt: str, weighting: bool = True) -> tuple[list, list]:
    """Returns the token ids of a whole prompt, without first and last, and the weight of each.

    weighting=False reads brackets as text, as diffusers does. Raises ValueError for words that a
    model of few words does not know.
    """
    sections = _sections(tokenizer, prompt, weighting)
    return [i for ids, _ in sections for i in ids], [w for _, own in sections for w in own]


def _sections(
    tokenizer: Tokenizer, prompt: str, weighting: bool
) -> list[tuple[list[int], list[float]]]:
    """The ids and weights of what BREAK separates."""
    sections: list[tuple[list[int], list[float]]] = [([], [])]
    pieces = parse(prompt) if weighting else [(prompt, 1.0)]
    split = [(_split_at_break(text) if weighting else [text], weight) for text, weight in pieces]
    _check_known(tokenizer, [text for texts, _ in split for text in texts])
    for texts, weight in split:
        if not abs(weight) <= MOST_WEIGHT:
            raise ValueError(
                f"the weight {weight:g} of {fields.shown(texts[0])} is beyond {MOST_WEIGHT:g}"
            )
        for k, text in enumerate(texts):
            if k > 0:
                sections.append(([], []))
            ids = tokenizer_io.encode(tokenizer, text)
            sections[-1][0].extend(ids)
            sections[-1][1].extend([weight] * len(ids))
    return sections


def _split_at_break(text: str) -> list[str]:
    """The texts between BREAKs, without the spaces beside these.

    A pattern with spaces before the word would take time that grows with their number squared.
    """
    first, *rest = BREAK.split(text)
    if not rest:
        return [first]
    return [first.rstrip(), *(part.strip() for part in rest[:-1]), rest[-1].lstrip()]


def _cuts(
    tokenizer: Tokenizer, prompt: str, weighting: bool
) -> list[tuple[list[int], list[float]]]:
    """The ids and weights of each chunk, which a BREAK and 75 tokens end."""
    room = tokenizer.max_length - 2
    return [
        (ids[start : start + room], weights[start : start + room])
        for ids, weights in _sections(tokenizer, prompt, weighting)
        for start in range(0, max(1, len(ids)), room)
    ]


def _check_known(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    unknown = [word for text in texts for word in tokenizer_io.unknown_words(tokenizer, text)]
    if unknown and tokenizer.words is not None:
        strangers = ", ".join(repr(word[:40]) for word in dict.fromkeys(unknown[:20]))
        known = ", ".join(sorted(tokenizer.words)[:200])
        raise ValueError(f"this model does not know {strangers}; the words it knows are: {known}")


def count_chunks(tokenizer: Tokenizer, texts: Sequence[str], weighting: bool = True) -> int:
    """Counts the chunks that the longest of the texts needs, at least one."""
    return max(len(_cuts(tokenizer, text, weighting)) for text in texts)


def chunk(
    tokenizer: Tokenizer, texts: Sequence[str], num_chunks: int, weighting: bool = True
) -> Chunks:
    """Cuts texts into `num_chunks` chunks each; shorter texts are filled up with empty chunks.

    A text that fits one chunk gives exactly the ids that diffusers gives; longer ones are cut
    after every 75 tokens and at every BREAK, and each part stands between a first and a last token
    of its own.
    """
    ids, weights = [], []
    for text in texts:
        cuts = _cuts(tokenizer, text, weighting)
        for part, own_weights in cuts + [([], [])] * (num_chunks - len(cuts)):
            ids.append(tokenizer_io.pad(tokenizer, part))
            weights.append([1.0, *own_weights, *[1.0] * (tokenizer.max_length - 1 - len(part))])
    shape = (len(texts), num_chunks, tokenizer.max_length)
    return Chunks(
        np.asarray(ids, np.int32).reshape(shape), np.asarray(weights, np.float32).reshape(shape)
    )


def _closed_by(part: str) -> tuple[str, float]:
    """Returns the bracket that a part closes and its factor; ("", 1.0) for text."""
    if part == "]":
        return "[", 1 / STRONGER
    if part == ")":
        return "(", STRONGER
    if part[0] == ":" and part[-1] == ")":
        return "(", float(part[1:-1].strip())  # float leaves some of what \s is
    return "", 1.0


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    groups = itertools.groupby(pieces, key=lambda piece: piece[1])
    return [("".join(text for text, _ in own), weight) for weight, own in groups] or [("", 1.0)]
