"""What a TensorFlow program does in one call: its operations as they are run, or as its graph holds them."""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_callbacks
from tensorflow.python.ops import while_v2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from impls.evidence import Evidence, counted
from impls.trace import Row

NO_XLA_MEMORY = "TensorFlow does not tell it of a program compiled by XLA"
NO_MEMORY = "TensorFlow does not tell it on a CPU"
NO_FUSIONS = (
    "Grappler, which fuses and folds what the concrete function holds, does not show its result: all numbers are before"
)
UNKNOWN_TRIPS = "a loop whose trip count the graph does not hold"
FREE = {"Const", "Placeholder", "PlaceholderWithDefault", "Identity", "NoOp", "Arg", "Retval"}
CALLS = {"PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "Case", "StatelessCase"}
PRODUCTS = ("MatMul", "BatchMatMulV2", "BatchMatMulV3", "_FusedMatMul")


class Operation(NamedTuple):
    """An operation that is run `times` times: its operands' shapes, and which of the first two are transposed."""

    times: int
    kind: str
    shapes: list[tuple[int, ...]]
    transposed: tuple[bool, bool]


def profiled(call: Callable[[], None]) -> list[Row]:
    """The profiler's rows of one call."""
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            call()
        (written,) = Path(folder).rglob("*.xplane.pb")
        planes = xplane_pb2.XSpace.FromString(written.read_bytes()).planes
        return [
            (plane.name, line.name, plane.event_metadata[event.metadata_id].name, event.duration_ps / 1000)
            for plane in planes
            for line in plane.lines
            for event in line.events
        ]


def of_call(call: Callable[[], None]) -> tuple[Evidence, dict[str, str]]:
    """Evidence of one eager call."""
    operations = _ran(call)
    return _of_operations(operations, {}, False), {"operations.txt": _lines(operations)}


def of_graph(graph: Any) -> tuple[Evidence, dict[str, str]]:
    """Evidence of one run of a concrete function's graph, before Grappler."""
    loops: dict[str, int | None] = {}
    operations = list(_in_graph(graph, 1, loops))
    return _of_operations(operations, loops, True), {"operations.txt": _lines(operations)}


def trips(graph: Any) -> dict[str, int | None]:
    """How often each loop of a graph runs, by its name; None where the graph does not hold it."""
    loops: dict[str, int | None] = {}
    for _ in _in_graph(graph, 1, loops):
        pass
    return loops


def _ran(call: Callable[[], None]) -> list[Operation]:
    """The operations of one eager call, told by TensorFlow as they are run."""
    seen: list[Operation] = []

    def told(kind: Any, inputs: Any, attributes: Any, outputs: Any, op_name: Any = None, graph: Any = None) -> None:
        kind = kind.decode() if isinstance(kind, bytes) else kind
        flags = dict(zip(attributes[::2], attributes[1::2], strict=True)) if attributes else {}
        seen.append(Operation(1, kind, [tuple(one.shape) for one in inputs], _transposed(flags.get)))

    op_callbacks.add_op_callback(told)
    try:
        call()
    finally:
        op_callbacks.remove_op_callback(told)
    return seen


def _in_graph(graph: Any, times: int, loops: dict[str, int | None]) -> Iterator[Operation]:
    """What `times` runs of a graph run, with its loops' bodies; `loops` gets their trips by name (None: unknown)."""
    for one in _reached(graph):
        if one.type in ("While", "StatelessWhile"):
            trips = _known(one.inputs[1])
            loops[one.name] = trips
            body = while_v2._get_graph(one, "body", "_body_graph")
            yield from _in_graph(body, times * (trips or 1), loops)
        elif one.type not in FREE:
            shapes = [tuple(operand.shape.as_list() if operand.shape.rank else ()) for operand in one.inputs]
            yield Operation(times, one.type, shapes, _transposed(one.node_def.attr.get))


def _known(tensor: Any) -> int | None:
    """The number that a tensor always holds, if that is known: of a loop, its most trips, which ours all make."""
    value = tf.get_static_value(tensor)
    if value is None and tensor.op.type in ("Max", "Identity", "Cast"):
        value = tf.get_static_value(tensor.op.inputs[0])
    return None if value is None else int(np.max(value))


def _of_operations(operations: Sequence[Operation], loops: dict[str, int | None], graph: bool) -> Evidence:
    products: Counter[tuple[int, int, int, int]] = Counter()
    kernels: Counter[str] = Counter()
    for one in operations:
        kernels[one.kind] += one.times
        if one.kind in PRODUCTS:
            products[_product(one)] += one.times
    missing = {"temp_bytes": NO_MEMORY} | ({"fusions": NO_FUSIONS} if graph else {})
    if None in loops.values():
        missing |= {"products": UNKNOWN_TRIPS, "kernels": UNKNOWN_TRIPS}
    if calls := sorted(CALLS & kernels.keys()):
        missing |= dict.fromkeys(("products", "kernels"), f"{', '.join(calls)} is not looked into")
    found = counted(products, kernels)
    found.missing, found.fusions = missing, None if graph else 0
    found.loops = [trips for trips in loops.values() if trips is not None]
    return found


def _product(one: Operation) -> tuple[int, int, int, int]:
    """Batch, M, K, N."""
    (*batch, m, k), (*_, n) = one.shapes[:2]
    if one.transposed[0]:
        m, k = k, m
    if one.transposed[1]:
        n = one.shapes[1][-2]
    return math.prod(batch), m, k, n


def _transposed(flag: Callable[[str], Any]) -> tuple[bool, bool]:
    """Whether a product takes its operands transposed, from its attributes, whose names differ between products."""

    def either(*names: str) -> bool:
        found = next((value for value in map(flag, names) if value is not None), False)
        return bool(getattr(found, "b", found))

    return either("transpose_a", "adj_x"), either("transpose_b", "adj_y")


def _reached(graph: Any) -> list[Any]:
    """The operations that a graph's outputs need, in its order: the others are pruned before it runs."""
    needed, todo = set(), [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while todo:
        one = todo.pop()
        if one.name not in needed:
            needed.add(one.name)
            todo += [tensor.op for tensor in one.inputs] + list(one.control_inputs)
    return [one for one in graph.get_operations() if one.name in needed]


def _lines(operations: Sequence[Operation]) -> str:
    return "".join(f"{one.times}×{one.kind} {' '.join(map(str, one.shapes))}".rstrip() + "\n" for one in operations)
