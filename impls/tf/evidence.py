"""What a TensorFlow program does in one call: its operations as they are run, or as its graph holds them."""

import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_callbacks
from tensorflow.python.ops import while_v2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from impls.evidence import Evidence, Product, Variable, counted
from impls.trace import Row

NO_XLA_MEMORY = "TensorFlow does not tell it of a program compiled by XLA"
NO_MEMORY = "TensorFlow does not tell it on a CPU"
NO_FUSIONS = (
    "Grappler, which fuses and folds what the concrete function holds, does not show its result: all numbers are before"
)
UNKNOWN_TRIPS = "a loop whose trip count the graph does not hold"
FREE = {"Const", "Placeholder", "PlaceholderWithDefault", "Identity", "NoOp", "Arg", "Retval"}
FREE |= {"_Arg", "_Retval", "ControlTrigger"}  # their names in a session's graph
CALLS = {"PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "Case", "StatelessCase"}
PRODUCT = "MatMul"  # part of the name of all: MatMul, BatchMatMulV2, _FusedMatMul, _MklNativeFusedMatMul, ...
FUSED = "Fused"  # and of those that Grappler made of several operations


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
    found = _of_operations(operations, {})
    found.fusions = 0
    found.missing = {"temp_bytes": NO_MEMORY} | found.missing
    return found, {"operations.txt": _lines(operations)}


def of_graph(graph: Any) -> tuple[Evidence, dict[str, str]]:
    """Evidence of one run of a concrete function's graph, before Grappler."""
    loops: dict[str, int | None] = {}
    operations = list(_in_graph(graph, 1, loops))
    found = _of_operations(operations, loops)
    found.missing = {"temp_bytes": NO_MEMORY, "fusions": NO_FUSIONS} | found.missing
    return found, {"operations.txt": _lines(operations)}


def of_traces(traces: Sequence[Any], variables: Sequence[Variable]) -> tuple[Evidence, dict[str, str]]:
    """Evidence of runs of a session: what ran of its graph, after Grappler, with TF1's loops taken apart.

    `traces` are the runs' RunMetadata, of FULL_TRACE, with their partition graphs. All runs do the same, but steps of a
    loop may overlap as they happen to: the memory is that of the run that held most.
    """
    nodes = {node.name: node for graph in traces[0].partition_graphs for node in graph.node}
    runs = [
        [one for device in trace.step_stats.dev_stats for one in device.node_stats if one.node_name in nodes]
        for trace in traces
    ]
    ran = runs[0]
    times = Counter(one.node_name for one in ran)
    loops = {name: count - 1 for name, count in times.items() if nodes[name].op == "LoopCond"}  # the last ends it
    operations = list(_in_trace(nodes, ran, times))
    found = _of_operations(operations, loops)
    found.fusions = sum(count for kind, count in found.kernels.items() if FUSED in kind)
    found.temp_bytes, found.variables = max(map(_peak_bytes, runs)), list(variables)
    return found, {"operations.txt": _lines(operations), "variables.txt": "".join(f"{v}\n" for v in variables)}


def before_xla(graph: Any) -> tuple[dict[str, int | None], list[Product], dict[str, str]]:
    """How often each loop of a graph runs, by its name, None where the graph does not hold it; and the products of a
    run, or why they cannot be counted.
    """
    loops: dict[str, int | None] = {}
    found = _of_operations(list(_in_graph(graph, 1, loops)), loops)
    if why := found.missing.get("products"):
        return loops, [], {"operations": f"of the graph before XLA, in which they are counted: {why}"}
    return loops, found.products, {}


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


def _in_trace(nodes: dict[str, Any], ran: Sequence[Any], times: Counter[str]) -> Iterator[Operation]:
    """The operations that ran, each once with how often it did, in the order in which they first began."""
    shapes = {
        (one.node_name, output.slot): tuple(dim.size for dim in output.tensor_description.shape.dim)
        for one in ran
        for output in one.output
    }
    for name, count in times.items():
        node = nodes[name]
        if node.op not in FREE:
            operands = [_source(text) for text in node.input if not text.startswith("^")]
            known = [shapes.get(operand, ()) for operand in operands]
            yield Operation(count, node.op, known, _transposed(node.attr.get))


def _source(text: str) -> tuple[str, int]:
    """An operand as a graph writes it, "name" or "name:1" -> the operation's name, and which of its outputs."""
    name, _, slot = text.partition(":")
    return name, int(slot or 0)


def _peak_bytes(ran: Sequence[Any]) -> int:
    """The most bytes held at a time of what a run took and gave back: what it never gave back are its outputs."""
    changes: list[tuple[int, int]] = []
    for memory in (memory for one in ran for memory in one.memory):
        records = [(record.alloc_micros, record.alloc_bytes) for record in memory.allocation_records]
        kept = Counter(size for _, size in records) - Counter(-size for _, size in records)
        for when, size in records:
            if kept[size] > 0:
                kept[size] -= 1
            else:
                changes.append((when, size))
    return max(itertools.accumulate(size for _, size in sorted(changes, key=lambda change: change[0])), default=0)


def _known(tensor: Any) -> int | None:
    """The number that a tensor always holds, if that is known: of a loop, its most trips, which ours all make."""
    value = tf.get_static_value(tensor)
    if value is None and tensor.op.type in ("Max", "Identity", "Cast"):
        value = tf.get_static_value(tensor.op.inputs[0])
    return None if value is None else int(np.max(value))


def _of_operations(operations: Sequence[Operation], loops: Mapping[str, int | None]) -> Evidence:
    """Evidence but for fusions and memory."""
    products: Counter[tuple[int, int, int, int]] = Counter()
    kernels: Counter[str] = Counter()
    for one in operations:
        kernels[one.kind] += one.times
        if PRODUCT in one.kind:
            products[_product(one)] += one.times
    missing: dict[str, str] = {}
    if None in loops.values():
        missing |= {"products": UNKNOWN_TRIPS, "kernels": UNKNOWN_TRIPS}
    if calls := sorted(CALLS & kernels.keys()):
        missing |= dict.fromkeys(("products", "kernels"), f"{', '.join(calls)} is not looked into")
    found = counted(products, kernels)
    found.missing = missing
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
