# SPDX-License-Identifier: MIT
"""Reads what a prompt says of several texts and of time, as AUTOMATIC1111's interface has it.

    a cat AND a dog:0.5      both guide, the second half as strongly
    [cat:dog:0.3]            cat in the first 0.3 of the steps, then dog
    [cat:dog:6]              cat in the first 6 steps
    [dog:0.3], [cat::0.3]    nothing before, nothing after
    [cat|dog|]               one after the other, a step each

They nest, and their texts may have the brackets of `prompts`, which stay as they are. A backslash
makes a bracket text. Positions in errors count characters from 1.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxgen import fields

AND = re.compile(r"\bAND\b")
NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*")
CLOSERS = {"(": ")", "[": "]"}
MOST_DEPTH = 40
MOST_WEIGHT = 1e3  # a larger one is a typing error


class Switch(NamedTuple):
    """Stands for one text before a moment of the run, and for another one from it on."""

    before: list
    after: list
    when: float
    is_share: bool  # of the run; else a number of steps


class Turns(NamedTuple):
    """Stands for several texts that take turns, a step each."""

    options: list[list]


Node = str | Switch | Turns


class Part(NamedTuple):
    """One of the prompts that AND joins."""

    nodes: list
    weight: float


class _Source(NamedTuple):
    prompt: str
    closers: dict[int, int]  # the closing bracket of each opening one, by positions


def parts_of(prompt: str) -> list[Part]:
    """Reads a prompt as the parts that AND joins, one if there is no AND.

    Raises ValueError, with the position, for what the notation cannot mean.
    """
    cuts = [match.span() for match in AND.finditer(prompt)]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(prompt)]
    parts = []
    for start, end in zip(starts, ends, strict=True):
        weight, stop = 1.0, end
        if cuts:
            text, _, number = prompt[start:end].rpartition(":")
            match = NUMBER.fullmatch(number) if len(number) < end - start else None
            if match:
                weight, stop = float(match[1]), start + len(text.rstrip())
            if not prompt[start:stop].strip():
                raise _error(prompt, start, "AND joins two texts, and one of them is empty")
            if abs(weight) > MOST_WEIGHT:
                raise _error(prompt, stop, f"the weight {weight:g} is beyond {MOST_WEIGHT:g}")
        closers, opened = _matched(prompt, start, stop)
        source = _Source(prompt, closers)
        _check_open(source, opened, stop)
        parts.append(Part(_nodes(source, start, stop), weight))
    return parts


def text_at(nodes: list, step: int, num_steps: int) -> str:
    """Says which text nodes stand for in a step, 0 to num_steps - 1."""
    return "".join(_node_at(node, step, num_steps) for node in nodes)


def _node_at(node: Node, step: int, num_steps: int) -> str:
    match node:
        case Switch():
            moment = int(node.when * num_steps) if node.is_share else node.when
            return text_at(node.before if step < moment else node.after, step, num_steps)
        case Turns():
            return text_at(node.options[step % len(node.options)], step, num_steps)
    return node


def _nodes(source: _Source, start: int, end: int, depth: int = 0) -> list:
    """The nodes of the prompt between two positions."""
    if depth > MOST_DEPTH:
        raise _error(source.prompt, start, f"brackets are nested more than {MOST_DEPTH} deep")
    result: list = [""]
    i = start
    while i < end:
        node, after = _node(source, i, depth)
        if isinstance(node, str) and isinstance(result[-1], str):
            result[-1] += node
        else:
            result.append(node)
        i = after
    return result


def _node(source: _Source, i: int, depth: int) -> tuple[Node, int]:
    """The node that begins at i, and where the next one does."""
    prompt, close = source.prompt, source.closers.get(i)
    if prompt[i] == "\\":
        return prompt[i : i + 2], i + 2
    if prompt[i] != "[" or close is None:
        return prompt[i], i + 1
    options = _split(source, i + 1, close, "|")
    if len(options) > 1:
        return Turns([_nodes(source, *span, depth + 1) for span in options]), close + 1
    spans = _split(source, i + 1, close, ":")
    number = NUMBER.fullmatch(prompt, *spans[-1]) if len(spans) > 1 else None
    if number is None:
        return prompt[i], i + 1  # emphasis
    return _switch(source, i, spans, number[1], depth), close + 1


def _switch(
    source: _Source, i: int, spans: list[tuple[int, int]], number: str, depth: int
) -> Switch:
    when, is_share = float(number), "." in number
    if len(spans) > 3:
        raise _error(source.prompt, i, f"{len(spans) - 1} colons; expected [from:to:when]")
    if when < 0 or (is_share and when > 1):
        raise _error(
            source.prompt,
            spans[-1][0],
            f"a text cannot change at {number}; give a share of the run from 0.0 to 1.0, or a "
            "whole number of steps",
        )
    texts = [_nodes(source, *span, depth + 1) for span in spans[:-1]]
    return Switch(texts[0] if len(texts) == 2 else [""], texts[-1], when, is_share)


def _split(source: _Source, start: int, end: int, sign: str) -> list[tuple[int, int]]:
    """The spans between the signs that stand in no further bracket."""
    spans, begin, i = [], start, start
    while i < end:
        if source.prompt[i] == sign:
            spans.append((begin, i))
            begin = i + 1
        i = source.closers.get(i, i) + (2 if source.prompt[i] == "\\" else 1)
    return [*spans, (begin, end)]


def _check_open(source: _Source, opened: list[int], end: int) -> None:
    """Brackets of emphasis may stay open; raises ValueError for others.

    No closed bracket holds one that stays open, so one walk from the first of them sees the signs
    that follow each.
    """
    if not opened:
        return
    last = {sign: _split(source, opened[0] + 1, end, sign)[-1][0] - 1 for sign in ":|"}
    has_moment = NUMBER.fullmatch(source.prompt, last[":"] + 1, end) is not None
    for place in opened:
        is_open = (has_moment and place < last[":"]) or place < last["|"]
        if source.prompt[place] == "[" and is_open:
            raise _error(source.prompt, place, "this bracket is never closed")


def _matched(prompt: str, start: int, end: int) -> tuple[dict[int, int], list[int]]:
    """The closing bracket of each opening one by positions, and those that stay open."""
    closers: dict[int, int] = {}
    opened: list[int] = []
    for i in _plain_positions(prompt, start, end):
        sign = prompt[i]
        if sign in CLOSERS:
            opened.append(i)
        elif opened and sign == CLOSERS[prompt[opened[-1]]]:
            closers[opened.pop()] = i
    return closers, opened


def _plain_positions(prompt: str, start: int, end: int) -> Iterator[int]:
    """The positions of what no backslash escapes."""
    i = start
    while i < end:
        if prompt[i] == "\\":
            i += 1
        else:
            yield i
        i += 1


def _error(prompt: str, place: int, fault: str) -> ValueError:
    around = prompt[max(0, place - 10) : place + 20]
    return ValueError(f"prompt, at character {place + 1} ({fields.shown(around)}): {fault}")
