"""Launches of a program that XLA compiled for a GPU, from what it dumps. This module imports no framework.

XLA runs a list of thunks: kernels, copies, library calls, loops, and CUDA graphs that hold several of them. The file
`thunk_sequence_after_thunk_passes`, or `thunk_sequence` where no graph was made, shows the list as an indented tree.
`thunk_metadata` gives the HLO instruction of each thunk, and the optimised HLO the trip count of each loop and the
sizes of each product.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from impls import hlo

THUNK = re.compile(r"^( *)(\d+): (k\w+)\s*\[.*?\]\s*(.*?)\s*$")
SECTION = re.compile(r"^ *(condition|body):\s*$")
METADATA = re.compile(r'profile_annotation: "([^"]*)"\s*thunk_id: (\d+)')
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
WHILE, GRAPH, SLICES = "kWhile", "kCommandBuffer", "kDynamicSliceFusion"
HOLDERS = {SLICES, "kSequential", "kAsyncStart"}  # they launch only what they hold
NOTHING = {"kAsyncDone", "kWaitForStreams"}  # they make one stream wait for another
ONE = {"kCopy", "kCustomKernel", "kKernel", "kMemzero", "kMemset32BitValue", "kCublasLtMatmul", "kGemm", "kCuDnn"}
LIBRARY = {"kCublasLtMatmul": "cuBLASLt", "kGemm": "cuBLAS", "kCuDnn": "cuDNN"}
TRITON = "Triton"
INDENT = 4  # spaces for each level of the tree
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
Sizes = tuple[int, int, int, int]  # batch, M, K and N of a product


@dataclass
class Thunk:
    """A thunk, and those that it holds."""

    number: int
    kind: str
    text: str
    parts: list["Thunk"] = field(default_factory=list)
    condition: list["Thunk"] = field(default_factory=list)


class Launch(NamedTuple):
    """A kernel, copy or library call of one call of the program.

    `name`: its HLO instruction. `times`: how often it runs in a call. `graph`: number of the CUDA graph that holds it,
    from 1; 0 where the host launches it. `product`: batch, M, K and N, if it is a matrix product, and `library` what
    multiplies. `moved_bytes`: of its operands and its result, an upper bound; 0 where the text does not give them.
    `sliced`: it works on a slice whose place the host computes; in a graph, that node changes at every trip of a loop.
    """

    name: str
    kind: str
    times: int
    graph: int
    product: Sizes | None
    library: str
    moved_bytes: int
    sliced: bool


@dataclass(frozen=True)
class Launches:
    """All launches of one call. `graphs`: how often each CUDA graph is launched, in the order of their numbers."""

    launches: tuple[Launch, ...]
    graphs: tuple[int, ...]


def launches(sequence: str, metadata: str, optimised: str) -> Launches:
    """Return the launches of one call.

    Raises ValueError where a line of the sequence cannot be read, or a conditional leaves the number unknown.
    """
    program = _Program(metadata, optimised)
    program.walk(parse(sequence), 1, 0)
    return Launches(tuple(program.launches), tuple(program.graphs))


def parse(sequence: str) -> list[Thunk]:
    """Return the tree of thunks. Raises ValueError for a line that is neither a thunk nor the name of a loop's part."""
    top: list[Thunk] = []
    path: list[tuple[Thunk, str]] = []  # the thunk at each level, and which of its parts is being read
    for line in filter(str.strip, sequence.splitlines()):
        if match := SECTION.match(line):
            _enter(path, match.group(1))
            continue
        if not (match := THUNK.match(line)):
            raise ValueError(f"this line of a thunk sequence cannot be read: {line.strip()[:100]}")
        level = len(match.group(1)) // INDENT
        thunk = Thunk(int(match.group(2)), match.group(3), match.group(4))
        del path[level:]
        holder, part = path[-1] if path else (None, "")
        siblings = top if holder is None else holder.condition if part == "condition" else holder.parts
        siblings.append(thunk)
        path.append((thunk, ""))
    return top


def _enter(path: list[tuple[Thunk, str]], part: str) -> None:
    """Go to a part of a loop: the condition of the thunk read last, or the body of the loop whose condition was read.

    How far the two words are indented says nothing: XLA does not indent the first.
    """
    if part == "body":
        while path and path[-1][1] != "condition":
            path.pop()
    if not path:
        raise ValueError(f"a thunk sequence has a {part} that belongs to no loop")
    path[-1] = (path[-1][0], part)


class _Program:
    """The HLO of a program, and the launches found in it so far."""

    def __init__(self, metadata: str, optimised: str) -> None:
        self.names = {int(number): name for name, number in METADATA.findall(metadata)}
        self.computations, _, unread_lines = hlo.parsed(optimised)
        if unread_lines:
            raise ValueError(f"this line of the program cannot be read: {unread_lines[0][:100]}")
        self.instructions = {
            instruction.name: instruction for instructions in self.computations.values() for instruction in instructions
        }
        self.products = hlo.products_by_instruction(self.computations)
        self.launches: list[Launch] = []
        self.graphs: list[int] = []

    def walk(self, thunks: Iterable[Thunk], times: int, graph: int, sliced: bool = False) -> None:
        """Add what `times` runs of the thunks launch. `graph`: number of the CUDA graph that holds them, or 0."""
        for thunk in thunks:
            if thunk.kind == "kConditional":
                raise ValueError(hlo.UNKNOWN_BRANCH)
            if thunk.kind == WHILE:
                self._loop(thunk, times, graph)
            elif thunk.kind == GRAPH:
                self.graphs.append(times)
                self.walk(thunk.parts, times, len(self.graphs))
            elif thunk.kind in HOLDERS:
                if thunk.kind == SLICES:  # what it holds works on its operands
                    self.names |= {part.number: self.names.get(thunk.number, "") for part in thunk.parts}
                self.walk(thunk.parts, times, graph, sliced or thunk.kind == SLICES)
            elif thunk.kind in ONE:
                self.launches.append(self._launch(thunk, times, graph, sliced))
            elif thunk.kind not in NOTHING:
                raise ValueError(f"what a thunk of the kind {thunk.kind} launches is not known here")

    def _loop(self, loop: Thunk, times: int, graph: int) -> None:
        """Add a loop's launches. With a known trip count XLA's runtime does not evaluate the condition."""
        instruction = self.instructions.get(self.names.get(loop.number, ""))
        match = hlo.TRIPS.search(instruction.rest) if instruction else None
        if not match:
            raise ValueError(hlo.UNKNOWN_TRIPS)
        self.walk(loop.parts, times * int(match.group(1)), graph)

    def _launch(self, thunk: Thunk, times: int, graph: int, sliced: bool) -> Launch:
        name = self.names.get(thunk.number, "")
        product = self.products.get(name)
        library = LIBRARY.get(thunk.kind, TRITON) if product else ""
        return Launch(name, thunk.kind, times, graph, product, library, self._moved_bytes(name), sliced)

    def _moved_bytes(self, name: str) -> int:
        """Return the bytes of an instruction's operands and result; of arrays that it slices, only the slices."""
        instruction = self.instructions.get(name)
        if instruction is None:
            return 0
        callee = re.search(r"\bcalls=%?([\w.\-]+)", instruction.rest)
        if instruction.opcode == "fusion" and callee and callee.group(1) in self.computations:
            return fusion_bytes(instruction, self.computations[callee.group(1)])
        shapes = [
            hlo.element(self.instructions[operand].shape, places)
            for operand, places in operands(instruction)
            if operand in self.instructions
        ]
        return sum(map(shape_bytes, [instruction.shape, *shapes]))


def operands(instruction: hlo.Instruction) -> list[tuple[str, str]]:
    """Return the names of an instruction's operands, each with its place in a tuple, as #0, or ""."""
    return re.findall(r"%([\w.\-]+)((?:#\d+)*)", instruction.rest.partition(")")[0])


def fusion_bytes(fusion: hlo.Instruction, instructions: list[hlo.Instruction]) -> int:
    """Return the bytes that a fusion reads and writes: of an array that it reads or updates a slice of, the slice.

    `instructions`: those of the computation that the fusion calls.
    """
    by_name = {instruction.name: instruction for instruction in instructions}
    read_bytes = {i.name: shape_bytes(i.shape) for i in instructions if i.opcode == "parameter"}
    written_bytes = shape_bytes(fusion.shape)
    for instruction in instructions:
        if instruction.opcode == "dynamic-slice":
            source, slice_bytes = _source(instruction, by_name), shape_bytes(instruction.shape)
        elif instruction.opcode == "dynamic-update-slice":
            source, slice_bytes = _source(instruction, by_name), 0
            update = operands(instruction)[1][0]
            written_bytes += shape_bytes(by_name[update].shape) - shape_bytes(instruction.shape)
        else:
            continue
        if source in read_bytes:
            read_bytes[source] = min(read_bytes[source], slice_bytes)
    return max(written_bytes, 0) + sum(read_bytes.values())


def _source(instruction: hlo.Instruction, by_name: dict[str, hlo.Instruction]) -> str:
    """Return the name of what an instruction's first operand views or copies, or of that operand itself."""
    name = operands(instruction)[0][0]
    while name in by_name and by_name[name].opcode in ("bitcast", "copy"):
        name = operands(by_name[name])[0][0]
    return name


def shape_bytes(shape: str) -> int:
    """Return the bytes of an HLO shape, a tuple's elements together: (f32[2,3]{1,0}, s32[]) -> 28.

    The workspace of a library, which is a large array of s8, is not counted.
    """
    arrays = ARRAY.findall(shape)
    return sum(
        ITEM_BYTES.get(kind, 4) * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in arrays
        if kind != "s8"
    )
