"""What a TensorFlow program does in one call: its operations, as they run or as its graph holds them."""

import itertools
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from impls import libraries
from impls.evidence import Evidence, Product, Variable, counted
from impls.tf import private
from impls.tf.products import VerboseProcess
from impls.trace import Row

NO_XLA_MEMORY = "TensorFlow does not tell it of a program compiled by XLA"
NO_MEMORY = "TensorFlow does not tell it on a CPU"
NO_FUSIONS = (
    "Grappler, which fuses and folds what the concrete function holds, does not show its result: all numbers are before"
)
UNKNOWN_TRIPS = "a loop whose trip count the graph does not hold"
FREE = {"Const", "Placeholder", "PlaceholderWithDefault", "Identity", "NoOp", "Arg", "Retval"}
FREE |= {"_Arg", "_Retval", "ControlTrigger"}  # the names of some of these in a session's graph
CALLS = {"PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "Case", "StatelessCase"}
PRODUCT = "MatMul"  # in the names of all products: MatMul, BatchMatMulV2, _FusedMatMul, _MklNativeFusedMatMul, ...
OTHER_PRODUCT = re.compile(r"\w*(?:Einsum|Conv\dD|DepthwiseConv|RNN|LSTM|GRU|Dot|Gemm|Attention)\w*")  # names of more
UNKNOWN_PRODUCT = "products of a kind whose operands are not known here"
FUSED = "Fused"  # in the names of what Grappler combined from several operations


class Prober(NamedTuple):
    """What finds the library of a product: the process that is asked, and the type of the program's numbers."""

    process: VerboseProcess
    dtype: str


class Operation(NamedTuple):
    """An operation that runs `times` times: its operands' shapes, and whether each of the first two is transposed."""

    times: int
    kind: str
    shapes: list[tuple[int, ...]]
    transposed: tuple[bool, bool]


def profiled(call: Callable[[], None]) -> list[Row]:
    """Return the profiler's rows of one call."""
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            call()
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = private.profile_planes(file.read_bytes())
        return [
            (plane.name, line.name, plane.event_metadata[event.metadata_id].name, event.duration_ps / 1000)
            for plane in planes
            for line in plane.lines
            for event in line.events
        ]


def of_call(call: Callable[[], None], prober: Prober | None = None) -> tuple[Evidence, dict[str, str]]:
    """Return the evidence of one eager call."""
    operations = _ran(call)
    result = _of_operations(operations, {})
    result.fusions = 0
    result.missing = {"temp_bytes": NO_MEMORY} | result.missing
    add_libraries(result, operations, prober)
    return result, {"operations.txt": _lines(operations)}


def of_graph(graph: Any, prober: Prober | None = None) -> tuple[Evidence, dict[str, str]]:
    """Return the evidence of one run of a concrete function's graph, before Grappler."""
    loops: dict[str, int | None] = {}
    operations = list(_in_graph(graph, 1, loops))
    result = _of_operations(operations, loops)
    result.missing = {"temp_bytes": NO_MEMORY, "fusions": NO_FUSIONS} | result.missing
    add_libraries(result, operations, prober)
    return result, {"operations.txt": _lines(operations)}


def of_traces(
    traces: Sequence[Any], variables: Sequence[Variable], prober: Prober | None
) -> tuple[Evidence, dict[str, str]]:
    """Return the evidence of runs of a session: what ran of its graph, after Grappler, TF1's loops taken apart.

    `traces` are the runs' RunMetadata, of FULL_TRACE, with their partition graphs. All runs do the same, but steps of a
    loop may overlap differently in each. The memory is therefore that of the run that held most.
    """
    nodes = {node.name: node for graph in traces[0].partition_graphs for node in graph.node}
    runs = [
        [record for device in trace.step_stats.dev_stats for record in device.node_stats if record.node_name in nodes]
        for trace in traces
    ]
    records = runs[0]
    times = Counter(record.node_name for record in records)
    loops = {name: count - 1 for name, count in times.items() if nodes[name].op == "LoopCond"}  # the last ends the loop
    operations = list(_in_trace(nodes, records, times))
    result = _of_operations(operations, loops)
    result.fusions = sum(count for kind, count in result.kernels.items() if FUSED in kind)
    result.temp_bytes, result.variables = max(map(_peak_bytes, runs)), list(variables)
    add_libraries(result, operations, prober)
    return result, {"operations.txt": _lines(operations), "variables.txt": "".join(f"{v}\n" for v in variables)}


def add_libraries(result: Evidence, operations: Sequence[Operation], prober: Prober | None) -> None:
    """Add to the evidence which libraries multiply, each product as another process shows it; on a GPU, nothing."""
    if prober is None:
        return

    def find() -> None:
        for operation in operations:
            if PRODUCT in operation.kind:
                line = prober.process.library(operation.kind, operation.shapes, operation.transposed, prober.dtype)
                libraries.add(result, [line] if line else [], operation.times)

    libraries.look(result, find)


def before_xla(graph: Any) -> tuple[dict[str, int | None], list[Product], dict[str, str]]:
    """Return the trip counts of a graph's loops, the products of a run, and why these cannot be counted, if so.

    Trip counts are keyed by the loops' names, and None if the graph does not hold them.
    """
    loops: dict[str, int | None] = {}
    result = _of_operations(list(_in_graph(graph, 1, loops)), loops)
    if reason := result.missing.get("products"):
        return loops, [], {"operations": f"of the graph before XLA, in which they are counted: {reason}"}
    return loops, result.products, {}


def _ran(call: Callable[[], None]) -> list[Operation]:
    """Return the operations of one eager call, which TensorFlow reports to a callback as they run."""
    operations: list[Operation] = []

    def record(kind: Any, inputs: Any, attributes: Any, outputs: Any, op_name: Any = None, graph: Any = None) -> None:
        kind = kind.decode() if isinstance(kind, bytes) else kind
        flags = dict(zip(attributes[::2], attributes[1::2], strict=True)) if attributes else {}
        operations.append(Operation(1, kind, [tuple(operand.shape) for operand in inputs], _transposed(flags.get)))

    with private.operation_callback(record):
        call()
    return operations


def _in_graph(graph: Any, times: int, loops: dict[str, int | None]) -> Iterator[Operation]:
    """Yield what `times` runs of a graph run, including its loops' bodies, and add trip counts to `loops` by name.

    A trip count that is unknown is None, and the body is then counted once.
    """
    for node in _reached(graph):
        if node.type in ("While", "StatelessWhile"):
            trips = _known(node.inputs[1])
            loops[node.name] = trips
            body = private.loop_body(node)
            yield from _in_graph(body, times * (trips or 1), loops)
        elif node.type not in FREE:
            shapes = [tuple(operand.shape.as_list() if operand.shape.rank else ()) for operand in node.inputs]
            yield Operation(times, node.type, shapes, _transposed(node.node_def.attr.get))


def _in_trace(nodes: dict[str, Any], records: Sequence[Any], times: Counter[str]) -> Iterator[Operation]:
    """Yield each operation that ran, with how often it did, in the order in which they first began."""
    shapes = {
        (record.node_name, output.slot): tuple(dim.size for dim in output.tensor_description.shape.dim)
        for record in records
        for output in record.output
    }
    for name, count in times.items():
        node = nodes[name]
        if node.op not in FREE:
            operands = [_source(text) for text in node.input if not text.startswith("^")]
            operand_shapes = [shapes.get(operand, ()) for operand in operands]
            yield Operation(count, node.op, operand_shapes, _transposed(node.attr.get))


def _source(text: str) -> tuple[str, int]:
    """Split an operand as a graph writes it, "name" or "name:1", into the operation's name and its output's number."""
    name, _, slot = text.partition(":")
    return name, int(slot or 0)


def _peak_bytes(node_records: Sequence[Any]) -> int:
    """Return the most bytes held at once of what a run allocated and freed; what it never frees are its outputs."""
    changes: list[tuple[int, int]] = []
    for memory in (memory for node_record in node_records for memory in node_record.memory):
        records = [(record.alloc_micros, record.alloc_bytes) for record in memory.allocation_records]
        outputs = Counter(size for _, size in records) - Counter(-size for _, size in records)
        for time, size in records:
            if outputs[size] > 0:
                outputs[size] -= 1
            else:
                changes.append((time, size))
    return max(itertools.accumulate(size for _, size in sorted(changes, key=lambda change: change[0])), default=0)


def _known(tensor: Any) -> int | None:
    """Return the number that a tensor always holds, or None if unknown.

    For a loop this is its maximum number of trips, which all loops here make.
    """
    value = tf.get_static_value(tensor)
    if value is None and tensor.op.type in ("Max", "Identity", "Cast"):
        value = tf.get_static_value(tensor.op.inputs[0])
    return None if value is None else int(np.max(value))


def _of_operations(operations: Sequence[Operation], loops: Mapping[str, int | None]) -> Evidence:
    """Return the evidence of operations, without fusions and memory."""
    products: Counter[tuple[int, int, int, int]] = Counter()
    kernels: Counter[str] = Counter()
    for operation in operations:
        kernels[operation.kind] += operation.times
        if PRODUCT in operation.kind:
            products[_product(operation)] += operation.times
    missing: dict[str, str] = {}
    if None in loops.values():
        missing |= {"products": UNKNOWN_TRIPS, "kernels": UNKNOWN_TRIPS}
    if unknown := sorted(kind for kind in kernels if PRODUCT not in kind and OTHER_PRODUCT.fullmatch(kind)):
        missing["products"] = f"{UNKNOWN_PRODUCT}: {', '.join(unknown)}"
    if calls := sorted(CALLS & kernels.keys()):
        missing |= dict.fromkeys(("products", "kernels"), f"{', '.join(calls)} is not looked into")
    result = counted(products, kernels)
    result.missing = missing
    result.loops = [trips for trips in loops.values() if trips is not None]
    return result


def _product(operation: Operation) -> tuple[int, int, int, int]:
    """Return batch, M, K and N of a product."""
    (*batch, m, k), (*_, n) = operation.shapes[:2]
    if operation.transposed[0]:
        m, k = k, m
    if operation.transposed[1]:
        n = operation.shapes[1][-2]
    return math.prod(batch), m, k, n


def _transposed(flag: Callable[[str], Any]) -> tuple[bool, bool]:
    """Return whether a product transposes each of its operands. The attributes that say so differ between products."""

    def either(*names: str) -> bool:
        attribute = next((value for value in map(flag, names) if value is not None), False)
        return bool(getattr(attribute, "b", attribute))

    return either("transpose_a", "adj_x"), either("transpose_b", "adj_y")


def _reached(graph: Any) -> list[Any]:
    """Return the operations that a graph's outputs need, in its order. The others are pruned before it runs."""
    needed_names, stack = set(), [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while stack:
        operation = stack.pop()
        if operation.name not in needed_names:
            needed_names.add(operation.name)
            stack += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return [operation for operation in graph.get_operations() if operation.name in needed_names]


def _lines(operations: Sequence[Operation]) -> str:
    return "".join(
        f"{operation.times}×{operation.kind} {' '.join(map(str, operation.shapes))}".rstrip() + "\n"
        for operation in operations
    )
