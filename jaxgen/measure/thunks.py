# SPDX-License-Identifier: MIT
"""What a GPU program launches, read from the list of thunks that XLA writes beside it.

A thunk is one thing that the host starts: a kernel, a copy, a library's call, a CUDA graph of many
of these, or a loop. With the option `xla_dump_to` XLA writes them, by indentation, to a file
`*.thunk_sequence_after_thunk_passes.txt`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

FILES = "*.thunk_sequence_after_thunk_passes.txt"
_THUNK = re.compile(r"^( *)\d+: (k\w+)\s*\[.*?\] *(\S*)")
_GRAPH, _LOOP = "kCommandBuffer", "kWhile"
_NO_WORK = ("kWaitForStreams", "kReplicaId", "kPartitionId")  # and the ends of what is asynchronous


class Thunk(NamedTuple):
    """One entry of the list; `parts` are those of a graph, or of a loop's condition and body."""

    kind: str
    name: str
    parts: list["Thunk"]


class Launches(NamedTuple):
    """What one round of the main loop takes, or the whole program if it has none."""

    kernels: int  # with copies and calls of libraries; of an inner loop one round
    launches: int  # by the host: a graph is one; none where the loop itself is in a graph
    graphs: int
    kernels_once: int  # before and after the main loop


def parse(text: str) -> list[Thunk]:
    """The thunks of a list. Raises ValueError for a text that has none."""
    root: list[Thunk] = []
    levels = [(-1, root)]
    for line in text.splitlines():
        match = _THUNK.match(line)
        if match is None:
            continue  # the headings "condition:" and "body:"
        indent, thunk = len(match[1]), Thunk(match[2], match[3], [])
        while levels[-1][0] >= indent:
            levels.pop()
        levels[-1][1].append(thunk)
        levels.append((indent, thunk.parts))
    if not root:
        raise ValueError("the text has no thunks; XLA's option xla_dump_to writes a list of them")
    return root


def launches(thunks: Sequence[Thunk], of_main_loop: bool = True) -> Launches:
    """The launches of a round of the main loop, or of the whole program with its loops run once."""
    loops = [(loop, inside) for loop, inside in _loops(thunks, False) if _kernels([loop])]
    if not loops or not of_main_loop:
        return Launches(_kernels(thunks), _launches(thunks), _graphs(thunks), 0)
    loop, inside_graph = max(loops, key=lambda pair: _kernels([pair[0]]))
    kernels = _kernels(loop.parts)
    started = 0 if inside_graph else _launches(loop.parts)
    graphs = 0 if inside_graph else _graphs(loop.parts)
    return Launches(kernels, started, graphs, _kernels(thunks) - kernels)


def _loops(thunks: Sequence[Thunk], inside_graph: bool) -> Iterator[tuple[Thunk, bool]]:
    for thunk in thunks:
        if thunk.kind == _LOOP:
            yield thunk, inside_graph
        yield from _loops(thunk.parts, inside_graph or thunk.kind == _GRAPH)


def _kernels(thunks: Sequence[Thunk]) -> int:
    return sum(_kernels(t.parts) if t.parts else _works(t) for t in thunks)


def _launches(thunks: Sequence[Thunk]) -> int:
    return sum(_launches(t.parts) if t.parts and t.kind != _GRAPH else _works(t) for t in thunks)


def _graphs(thunks: Sequence[Thunk]) -> int:
    return sum(t.kind == _GRAPH or _graphs(t.parts) for t in thunks)


def _works(thunk: Thunk) -> bool:
    return thunk.kind not in _NO_WORK and not thunk.kind.endswith("Done")
