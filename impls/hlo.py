"""Counts from optimised HLO text, which is XLA's program after all its passes. This module imports no framework.

A call of the program runs ENTRY once. A while loop runs its body as often as its known_trip_count says. Where XLA knows
no count, the loop of the same name in the program that XLA compiled gives it. A fusion is one kernel, whatever it
holds. Grammar: the page "HLO text" of XLA's documentation.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from impls.evidence import Evidence, counted
from impls.libraries import EIGEN, ONEDNN, XLA, YNNPACK, shorten

HEADING = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
TRIPS = re.compile(r'known_trip_count"?:?=?\{"?n"?:"?(\d+)')
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "conditional"}
SHOWN = 100  # characters shown of a line that cannot be read
GEMM = re.compile(r"matmul|gemm|dot", re.IGNORECASE)
OTHER_PRODUCT = re.compile(r"conv(?!ert)|rnn|lstm|gru|attention|fmha", re.IGNORECASE)
UNKNOWN_PRODUCT = "products of a kind whose operands are not known here"
YNN_FUSION, ONEDNN_CALL = "__ynn_fusion", "__onednn"  # kind of a fusion; start of the names of custom calls
WITHOUT_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type="  # in XLA_FLAGS: nothing is handed to YNNPACK
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
    """What one call of a program runs."""

    products: Counter[tuple[int, int, int, int]]
    kernels: Counter[str]
    loops: list[int]
    unknown: str = ""  # why the numbers are unknown
    unknown_products: set[str] = field(default_factory=set)  # names of what multiplies and is not counted
    libraries: Counter[str] = field(default_factory=Counter)
    library_proof: dict[str, str] = field(default_factory=dict)


def evidence(text: str, trips: Mapping[str, int | None] | None = None) -> Evidence:
    """Return the evidence of a program, without its memory. `trips`: known trip counts of loops, by their op_name."""
    computations, entry, unread_lines = parsed(text)
    if not entry:
        return Evidence(missing={"everything": NO_PROGRAM})
    counts = Counts(Counter(), Counter(), [])
    _walk(computations, entry, 1, None, counts, trips or {})
    result = counted(counts.products, counts.kernels)
    result.fusions, result.loops = counts.kernels["fusion"], counts.loops
    result.libraries, result.library_proof = dict(sorted(counts.libraries.items())), counts.library_proof
    if counts.unknown:
        result.missing = dict.fromkeys(("products", "kernels", "fusions"), counts.unknown)
    if counts.unknown_products:
        result.missing["products"] = f"{UNKNOWN_PRODUCT}: {', '.join(sorted(counts.unknown_products))}"
    if unread_lines:
        reason = (
            f"{len(unread_lines)} of the program's lines cannot be read, the first of them: {unread_lines[0][:SHOWN]}"
        )
        result.missing = dict.fromkeys(("products", "kernels", "fusions", "loops"), reason)
    return result


def parsed(text: str) -> tuple[dict[str, list[Instruction]], str, list[str]]:
    """Return the computations by name, the entry's name, and the lines that are no instruction known to this parser."""
    computations: dict[str, list[Instruction]] = {}
    unread_lines: list[str] = []
    entry, computation = "", ""
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (header := HEADING.match(line)) and "->" in line:
            computation = header.group(2)
            computations[computation] = []
            entry = computation if header.group(1) else entry
        elif line.startswith("}"):
            computation = ""
        elif computation and (match := INSTRUCTION.match(line)):
            computations[computation].append(Instruction(*match.groups()))
        elif line.strip() and (computation or line.endswith("{")):  # an unread header opens no computation
            unread_lines.append(line.strip())
    return computations, entry, unread_lines


def _walk(
    computations: dict[str, list[Instruction]],
    name: str,
    times: int,
    fusion: Instruction | None,
    counts: Counts,
    known_trips: Mapping[str, int | None],
) -> None:
    """Add to `counts` what `times` runs of a computation do. `fusion` is the fusion that it is the inside of."""
    shapes = {instruction.name: instruction.shape for instruction in computations[name]}
    for instruction in computations[name]:
        if instruction.opcode == "dot":
            counts.products[_dot(instruction, shapes)] += times
            _add_library(counts, dot_library(instruction, fusion), fusion or instruction, times)
        target = _attribute(instruction, "custom_call_target")
        if instruction.opcode in ("convolution", "ragged-dot") or (target and OTHER_PRODUCT.search(target)):
            counts.unknown_products.add(target or instruction.opcode)
        if target and GEMM.search(target):
            counts.products[_gemm(instruction, shapes)] += times
            if target.startswith(ONEDNN_CALL):
                _add_library(counts, ONEDNN, instruction, times)
        if not fusion and instruction.opcode not in FREE:
            counts.kernels[f"{instruction.opcode} {target}" if target else instruction.opcode] += times
        inner_times = times * _trips(instruction, counts, known_trips)
        if instruction.opcode == "conditional":
            counts.unknown = UNKNOWN_BRANCH
        for callee in _called(instruction):
            inside = fusion or (instruction if instruction.opcode == "fusion" else None)
            _walk(computations, callee, inner_times, inside, counts, known_trips)


def _trips(instruction: Instruction, counts: Counts, known_trips: Mapping[str, int | None]) -> int:
    """Return how often an instruction runs what it calls: a loop its trips, which `counts` is told, all others once."""
    if instruction.opcode != "while":
        return 1
    match = TRIPS.search(instruction.rest)
    trips = int(match.group(1)) if match else known_trips.get(_attribute(instruction, "op_name"))
    if trips is None:
        counts.unknown = UNKNOWN_TRIPS
        return 1
    counts.loops.append(trips)
    return trips


def dot_library(dot: Instruction, fusion: Instruction | None) -> str | None:
    """Return what multiplies on a CPU where the program has a dot, in a fusion or by itself; None if it does not say.

    YNNPACK, where it is in a fusion that is handed to it. XLA itself, in a loop that it generates, where it is in
    another fusion or its result is a vector. Every other dot XLA gives, after the last program that it shows, to
    YNNPACK or to Eigen (in TensorFlow 2.21 profiles show both): it is Eigen's for certain only without YNNPACK.
    """
    if fusion:
        return YNNPACK if YNN_FUSION in fusion.rest else XLA
    result = sizes(dot.shape)
    if len(result) < 2 or (len(result) == 2 and 1 in result):
        return XLA
    return EIGEN if WITHOUT_YNNPACK in os.environ.get("XLA_FLAGS", "").split() else None


def _add_library(counts: Counts, library: str | None, instruction: Instruction, times: int) -> None:
    """Count products of a library, of which the instruction is the proof if it is the first; none if it is unknown."""
    if library is None:
        return
    kind = f", kind={YNN_FUSION}" if library == YNNPACK else ""
    operands = instruction.rest[: instruction.rest.index(")") + 1]
    counts.libraries[library] += times
    proof = f"{instruction.name} = {instruction.shape} {instruction.opcode}({operands}{kind}"
    counts.library_proof.setdefault(library, shorten(proof))


def _called(instruction: Instruction) -> Iterator[str]:
    """Yield the computations that an instruction runs, except those that reduce or compare element by element."""
    names = {"while": ("body",), "fusion": ("calls",), "call": ("to_apply",)}.get(instruction.opcode, ())
    for attribute in names:
        if match := re.search(rf"\b{attribute}=%?([\w.\-]+)", instruction.rest):
            yield match.group(1)


def _attribute(instruction: Instruction, name: str) -> str:
    match = re.search(rf'\b{name}="([^"]*)"', instruction.rest)
    return match.group(1) if match else ""


def _operands(instruction: Instruction, shapes: dict[str, str]) -> list[tuple[int, ...]]:
    """Return the sizes of an instruction's operands, whose types the text may or may not give.

    Newer texts name the elements of a tuple by their place in it: %arg#2 is the third element of %arg.
    """
    operands = instruction.rest[: instruction.rest.index(")")]
    names = re.findall(r"%?([\w.\-]+)((?:#\d+)*)(?:,|$)", re.sub(r"\{[^}]*\}|\w+\[[^\]]*\]", "", operands))
    return [sizes(element(shapes[name], places)) for name, places in names if name in shapes]


def element(shape: str, places: str) -> str:
    """Return the shape of an element of a tuple's shape: of (f32[2], (s32[], f32[3])), #1#0 is s32[]."""
    for place in re.findall(r"#(\d+)", places):
        shape = _elements(shape)[int(place)]
    return shape


def _elements(shape: str) -> list[str]:
    """Return the shapes in a tuple's shape, split at the commas that are in no bracket of their own."""
    parts, depth = [""], 0
    for character in re.sub(r"/\*.*?\*/", "", shape)[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def sizes(shape: str) -> tuple[int, ...]:
    """Return the sizes in a shape: f32[50,100]{1,0} -> (50, 100)."""
    match = SHAPE.match(shape)
    return tuple(int(size) for size in match.group(1).split(",") if size) if match else ()


def _dims(instruction: Instruction, name: str) -> list[int]:
    match = re.search(rf"\b{name}=\{{([\d,]*)\}}", instruction.rest)
    return [int(dim) for dim in match.group(1).split(",") if dim] if match else []


def _dot(instruction: Instruction, shapes: dict[str, str]) -> tuple[int, int, int, int]:
    """Return batch, M, K and N of a dot."""
    left, right = _operands(instruction, shapes)
    contracted, batch = _dims(instruction, "lhs_contracting_dims"), _dims(instruction, "lhs_batch_dims")
    k, b = (math.prod(left[dim] for dim in dims) for dims in (contracted, batch))
    return b, math.prod(left) // (k * b), k, math.prod(right) // (k * b)


def _gemm(instruction: Instruction, shapes: dict[str, str]) -> tuple[int, int, int, int]:
    """Return batch, M, K and N of a library's product. The right operand's axes before its last two are the batch."""
    left, right, *_ = _operands(instruction, shapes)
    b = math.prod(right[:-2])
    rows, columns = math.prod(left) // b, math.prod(right) // b  # M K and K N
    result = math.prod(sizes(instruction.shape.lstrip("("))) // b  # M N
    k = math.isqrt(rows * columns // result) if result else 1
    return b, rows // k, k, columns // k


def products_by_instruction(computations: Mapping[str, list[Instruction]]) -> dict[str, tuple[int, int, int, int]]:
    """Return batch, M, K and N of each instruction that is one matrix product: a library's call, or a fusion of a dot.

    The computations inside fusions have no entry of their own: a fusion is one kernel.
    """
    products: dict[str, tuple[int, int, int, int]] = {}
    for instructions in computations.values():
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        for instruction in instructions:
            target = _attribute(instruction, "custom_call_target")
            if instruction.opcode == "dot":
                products[instruction.name] = _dot(instruction, shapes)
            elif target and GEMM.search(target):
                products[instruction.name] = _gemm(instruction, shapes)
    for instructions in computations.values():
        for instruction in instructions:
            for callee in _called(instruction) if instruction.opcode == "fusion" else ():
                dots = [operation.name for operation in computations[callee] if operation.name in products]
                if dots:
                    products[instruction.name] = products[dots[0]]
    return products
