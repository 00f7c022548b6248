"""Counting in optimised HLO text, XLA's program after all its passes. Imports no framework.

A call of the program runs ENTRY once; a while loop runs its body as often as its known_trip_count says, or, where
XLA knows none, the loop of the same name in the program it was made from; a fusion is one kernel whatever is inside.
Grammar: the page "HLO text" of XLA's documentation.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from impls.evidence import Evidence, counted

HEADING = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
TRIPS = re.compile(r'known_trip_count"?:?=?\{"?n"?:"?(\d+)')
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "conditional"}
SHOWN = 100  # characters of a line that cannot be read
GEMM = re.compile(r"matmul|gemm|dot", re.IGNORECASE)
NO_PROGRAM = "the text holds no HLO program"
UNKNOWN_BRANCH = "a conditional, whose branch is known only when it runs"
UNKNOWN_TRIPS = "a loop whose trip count XLA does not know"


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes


@dataclass
class Counts:
    """What a call runs."""

    products: Counter[tuple[int, int, int, int]]
    kernels: Counter[str]
    loops: list[int]
    unknown: str = ""  # why the numbers are not known


def evidence(text: str, trips: Mapping[str, int | None] | None = None) -> Evidence:
    """Evidence of a program, without its memory. `trips`: what is known of loops by their op_name."""
    computations, entry, unread = parsed(text)
    if not entry:
        return Evidence(missing={"everything": NO_PROGRAM})
    counts = Counts(Counter(), Counter(), [])
    _walk(computations, entry, 1, False, counts, trips or {})
    found = counted(counts.products, counts.kernels)
    found.fusions, found.loops = counts.kernels["fusion"], counts.loops
    if counts.unknown:
        found.missing = dict.fromkeys(("products", "kernels", "fusions"), counts.unknown)
    if unread:
        why = f"{len(unread)} of the program's lines cannot be read, the first of them: {unread[0][:SHOWN]}"
        found.missing = dict.fromkeys(("products", "kernels", "fusions", "loops"), why)
    return found


def parsed(text: str) -> tuple[dict[str, list[Instruction]], str, list[str]]:
    """Computations by name, the entry's name, and the lines of the program that are no instruction as known here."""
    computations: dict[str, list[Instruction]] = {}
    unread: list[str] = []
    entry, inside = "", ""
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (heading := HEADING.match(line)) and "->" in line:
            inside = heading.group(2)
            computations[inside] = []
            entry = inside if heading.group(1) else entry
        elif line.startswith("}"):
            inside = ""
        elif inside and (found := INSTRUCTION.match(line)):
            computations[inside].append(Instruction(*found.groups()))
        elif line.strip() and (inside or line.endswith("{")):  # a computation whose heading is another is not entered
            unread.append(line.strip())
    return computations, entry, unread


def _walk(
    computations: dict[str, list[Instruction]],
    name: str,
    times: int,
    fused: bool,
    counts: Counts,
    known: Mapping[str, int | None],
) -> None:
    """Count what `times` runs of a computation do."""
    shapes = {one.name: one.shape for one in computations[name]}
    for one in computations[name]:
        if one.opcode == "dot":
            counts.products[_dot(one, shapes)] += times
        target = _attribute(one, "custom_call_target")
        if target and GEMM.search(target):
            counts.products[_gemm(one, shapes)] += times
        if not fused and one.opcode not in FREE:
            counts.kernels[f"{one.opcode} {target}" if target else one.opcode] += times
        inner = times
        if one.opcode == "while":
            found = TRIPS.search(one.rest)
            trips = int(found.group(1)) if found else known.get(_attribute(one, "op_name"))
            if trips is None:
                counts.unknown = UNKNOWN_TRIPS
            else:
                counts.loops.append(trips)
                inner = times * trips
        if one.opcode == "conditional":
            counts.unknown = UNKNOWN_BRANCH
        for called in _called(one):
            _walk(computations, called, inner, fused or one.opcode == "fusion", counts, known)


def _called(one: Instruction) -> Iterator[str]:
    """The computations that an instruction runs, but for the ones that reduce and compare element by element."""
    names = {"while": ("body",), "fusion": ("calls",), "call": ("to_apply",)}.get(one.opcode, ())
    for attribute in names:
        if found := re.search(rf"\b{attribute}=%?([\w.\-]+)", one.rest):
            yield found.group(1)


def _attribute(one: Instruction, name: str) -> str:
    found = re.search(rf'\b{name}="([^"]*)"', one.rest)
    return found.group(1) if found else ""


def _operands(one: Instruction, shapes: dict[str, str]) -> list[tuple[int, ...]]:
    """The sizes of an instruction's operands, which may or may not be written with their types."""
    inside = one.rest[: one.rest.index(")")]
    names = re.findall(r"%?([\w.\-]+)(?:,|$)", re.sub(r"\{[^}]*\}|\w+\[[^\]]*\]", "", inside))
    return [sizes(shapes[name]) for name in names if name in shapes]


def sizes(shape: str) -> tuple[int, ...]:
    """f32[50,100]{1,0} -> (50, 100)."""
    found = SHAPE.match(shape)
    return tuple(int(size) for size in found.group(1).split(",") if size) if found else ()


def _dims(one: Instruction, name: str) -> list[int]:
    found = re.search(rf"\b{name}=\{{([\d,]*)\}}", one.rest)
    return [int(dim) for dim in found.group(1).split(",") if dim] if found else []


def _dot(one: Instruction, shapes: dict[str, str]) -> tuple[int, int, int, int]:
    """Batch, M, K, N of a dot."""
    left, right = _operands(one, shapes)
    contracted, batch = _dims(one, "lhs_contracting_dims"), _dims(one, "lhs_batch_dims")
    k, b = (math.prod(left[dim] for dim in dims) for dims in (contracted, batch))
    return b, math.prod(left) // (k * b), k, math.prod(right) // (k * b)


def _gemm(one: Instruction, shapes: dict[str, str]) -> tuple[int, int, int, int]:
    """Batch, M, K, N of a library's product: the right operand's axes before its last two are a batch."""
    left, right, *_ = _operands(one, shapes)
    b = math.prod(right[:-2])
    rows, columns = math.prod(left) // b, math.prod(right) // b  # M K, K N
    result = math.prod(sizes(one.shape.lstrip("("))) // b  # M N
    k = math.isqrt(rows * columns // result) if result else 1
    return b, rows // k, k, columns // k
