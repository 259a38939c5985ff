# SPDX-License-Identifier: MIT
"""A compiled program's text (HLO): its instructions, and the bytes that they move."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxgen import fields

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|branch_computations)=\{?((?:%[\w.\-]+,? ?)+)"
)
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# these move nothing, or what they move is counted in the computations that they call
_NO_TRAFFIC = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id",
}  # fmt: skip
_PARTS = ("dynamic-slice", "gather", "slice")  # of their first operand they read only a part


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str  # "bf16[2,64,64,320]{3,2,1,0}", or a tuple of such
    opcode: str
    operands: tuple[str, ...]  # names in the same computation
    called: tuple[str, ...]  # names of computations
    target: str  # of a custom call, else ""

    @property
    def bytes(self) -> int:
        return size(self.type)

    @property
    def dtypes(self) -> list[str]:
        return [dtype for dtype, _ in _SHAPE.findall(self.type)]


class Program(NamedTuple):
    """The computations of a program by name: instructions by name, the result last."""

    entry: str
    computations: dict[str, dict[str, Instruction]]


def parse(text: str) -> Program:
    """The program from the text that a compiled program's `as_text()` gives.

    Raises ValueError for a text without an entry.
    """
    entry, current = "", ""
    computations: dict[str, dict[str, Instruction]] = {}
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif current and (body := _INSTRUCTION.match(line)):
            computations[current][body[1]] = _instruction(body[1], body[2])
    if not entry:
        raise ValueError("the text is no compiled program: it has no line ENTRY; use as_text()")
    return Program(entry, computations)


def size(type_text: str) -> int:
    """The bytes of all arrays in a type, such as "(f32[64,10]{1,0}, bf16[8]{0})"."""
    total = 0
    for dtype, sides in _SHAPE.findall(type_text):
        part = _BYTES.get(dtype, 4)
        for side in filter(None, sides.split(",")):
            part *= int(side)
        total += part
    return total


def executed(program: Program, name: str) -> Iterator[tuple[str, Instruction]]:
    """Yields what a computation executes: (computation, instruction); a loop's body once."""
    for instruction in program.computations[name].values():
        yield name, instruction
        if instruction.opcode in ("while", "call", "conditional"):
            for called in instruction.called:
                yield from executed(program, called)


def traffic(program: Program, name: str) -> int:
    """The bytes that a computation's kernels read and write, in caches or not; a loop's body once.

    Of an operand from which a kernel takes slices or rows only these count, and of a result that is
    written in place only the part that changes.
    """
    moved = 0
    for where, instruction in executed(program, name):
        if instruction.opcode not in _NO_TRAFFIC and not instruction.opcode.endswith("-done"):
            moved += _traffic(program, where, instruction)
    return moved


def main_loop(program: Program) -> tuple[str, ...]:
    """The computations of the loop whose round moves most bytes: its condition and body, or ()."""
    loops = [i.called for _, i in executed(program, program.entry) if i.opcode == "while"]
    return max(loops, key=lambda called: _total(program, called), default=())


def _total(program: Program, names: Sequence[str]) -> int:
    return sum(traffic(program, name) for name in names)


def wide(program: Program) -> tuple[int, int]:
    """The number of convolutions, and of other products, with an operand of 32 bits or more."""
    convolutions = products = 0
    for instructions in program.computations.values():
        for i in instructions.values():
            convolves = i.opcode == "convolution" or "$conv" in i.target
            multiplies = i.opcode == "dot" or "__cublas" in i.target
            if convolves or multiplies:
                types = [d for name in i.operands[:2] for d in instructions[name].dtypes]
                large = bool({"f32", "f64"} & set(types))
                convolutions += large and convolves
                products += large and multiplies
    return convolutions, products


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    type_text, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = start + _closing(rest[start:])
    called = " ".join(_CALLED.findall(rest[end:]))
    target = _TARGET.search(rest, end)
    return Instruction(
        name,
        type_text,
        rest[:start],
        tuple(re.findall(r"%([\w.\-]+)", rest[start:end])),
        tuple(re.findall(r"%([\w.\-]+)", called)),
        target[1] if target else "",
    )


def _closing(text: str) -> int:
    """The place after the bracket that closes the one with which the text begins."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place + 1
    raise ValueError(
        f"a bracket is not closed in {fields.shown(text[:80])}; the program's text is cut"
    )


def _traffic(program: Program, where: str, instruction: Instruction) -> int:
    operands = [program.computations[where][name].bytes for name in instruction.operands]
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * instruction.bytes
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if instruction.opcode != "fusion":
        return sum(operands) + instruction.bytes
    fused = program.computations[instruction.called[0]]
    parameters = [i.name for i in fused.values() if i.opcode == "parameter"]  # as operands are
    read = sum(_read(fused, name, n) for name, n in zip(parameters, operands, strict=True))
    return read + _written(fused, list(fused.values())[-1])


def _read(fused: dict[str, Instruction], name: str, whole: int) -> int:
    """The bytes of a value that a fused computation reads."""
    part = 0
    for user in (i for i in fused.values() if name in i.operands):
        if user.opcode == "bitcast":
            part += _read(fused, user.name, whole)
        elif user.opcode in _PARTS and user.operands[0] == name:
            part += user.bytes
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return whole
    return min(part, whole)


def _written(fused: dict[str, Instruction], result: Instruction) -> int:
    match result.opcode:
        case "tuple":
            return sum(_written(fused, fused[name]) for name in result.operands)
        case "bitcast":
            return _written(fused, fused[result.operands[0]])
        case "dynamic-update-slice":
            return fused[result.operands[1]].bytes
    return result.bytes
