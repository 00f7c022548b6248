"""A transformation of PyTorch programs that takes work out of loops.

Dynamo traces a function into a graph: a Python loop as its steps one after another, torch's scan operator as a call
with a body. What no later step needs is done for all steps at once: T small matrix products become one. `hoist` does
this to the graph, before its gradients are taken, and has Inductor compile the result.

Moved are operations on rows, those of ROWS and ELEMENTWISE, where a product is among them. Everything else stays.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from impls.torch import private

linear = torch.nn.functional.linear
# Products of rows with a matrix -> the place of the rows among the arguments; all others are the same in every step.
ROWS: dict[Any, int] = {torch.addmm: 1, linear: 0, torch.matmul: 0, torch.mm: 0, operator.matmul: 0}
ELEMENTWISE = {
    *(torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.neg, torch.clone, torch.nn.functional.relu),
    *(torch.nn.functional.gelu, torch.nn.functional.silu, torch.add, torch.sub, torch.mul, torch.div),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
}
METHODS = ("clone", "relu", "tanh", "sigmoid", "exp", "add", "sub", "mul", "div", "matmul", "mm")
FEEDS = "a later step, or something else than the stack of all steps, depends on it"
NO_PRODUCT = "nothing in it is a product, so that doing it for all steps at once would save little"
MOVED = "no later step depends on it"


@dataclass(frozen=True)
class Stepped:
    """A value that differs by step, of all steps together: a node of [T, ...]."""

    node: Node


@dataclass
class Log:
    """What was decided, a line for each group of operations."""

    lines: list[str] = field(default_factory=list)

    def add(self, loop: str, steps: int, verb: str, names: Iterable[str], reason: str) -> None:
        self.lines.append(f"{loop}, {steps} steps: {verb}: {', '.join(names)}: {reason}")


def hoist(
    f: Callable[..., Any], *, log: list[str] | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Return a function that computes what `f` does, compiled, with the work taken out of its loops.

    It can be called and differentiated as `torch.compile(f, fullgraph=True, dynamic=False)` can. Results are equal to
    rounding. `log`: a list that each compilation appends a line to for each group of operations that was moved, or
    stays, with the reason. `options`: Inductor's.
    """
    backend = partial(compile_hoisted, log=[] if log is None else log, options=options)
    return torch.compile(f, backend=backend, fullgraph=True, dynamic=False)


def compile_hoisted(
    module: GraphModule, inputs: list[Any], log: list[str], options: dict[str, Any] | None
) -> Callable[..., Any]:
    """Return a traced graph compiled by Inductor, after its loops were rebuilt: a backend of torch.compile."""
    return private.compile_by_inductor(transformed(module, log), inputs, options)


def transformed(module: GraphModule, log: list[str]) -> GraphModule:
    """Return a traced graph with its loops rebuilt, in place."""
    record = Log()
    for node in list(module.graph.nodes):
        if node.target is private.scan_higher_order():
            rebuild_scan(module, node, record)
        elif node.op == "call_function" and node.target is torch.stack:
            rebuild_stack(module.graph, node, record)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    log.extend(record.lines)
    return module


# --- Python loops, whose steps are stacked


def rebuild_stack(graph: Graph, stack: Node, log: Log) -> None:
    """Compute what is stacked for all steps at once, where it is the same operations of every step's own values."""
    steps, *others = stack.args
    if others or stack.kwargs.get("dim", 0) != 0 or not isinstance(steps, (list, tuple)) or len(steps) < 2:
        return
    names: list[str] = []
    with graph.inserting_before(stack):
        value = lift(graph, list(steps), len(steps), names)
    if not names:
        if isinstance(steps[0], Node) and is_product(steps[0]):
            log.add("an unrolled loop", len(steps), "stays", [name_of(steps[0])], FEEDS)
        return
    log.add("an unrolled loop", len(steps), "moved", names, MOVED)
    stack.replace_all_uses_with(value.node)


def lift(graph: Graph, values: list[Any], count: int, names: list[str]) -> Any:
    """Return the value of all steps together, from each step's: itself where all are the same, or Stepped.

    `names` gets the operations that are done for all steps at once, in order; none where no product is among them.
    """
    if all(value is values[0] or (not isinstance(value, Node) and value == values[0]) for value in values):
        return values[0]
    if not has_product_inside(values):
        return Stepped(graph.call_function(torch.stack, (values,)))
    arguments = [lift(graph, list(column), count, names) for column in zip(*(v.args for v in values), strict=True)]
    names.append(name_of(values[0]))
    return Stepped(at_once(graph, values[0], arguments, count))


def has_product_inside(values: list[Any]) -> bool:
    """Return whether all steps' values are the same operation, used once, on rows, with a product in or under it."""
    first = values[0]
    if not all(isinstance(value, Node) and same_operation(value, first) and len(value.users) == 1 for value in values):
        return False
    columns = [list(column) for column in zip(*(value.args for value in values), strict=True)]
    places = [place for place, column in enumerate(columns) if any(value is not column[0] for value in column)]
    if is_product(first):
        return places == [ROWS[operation_of(first)]]
    return any(has_product_inside(columns[place]) for place in places if isinstance(columns[place][0], Node))


def same_operation(node: Node, other: Node) -> bool:
    """Return whether two nodes are the same operation on rows, with as many arguments and none by name."""
    known = is_product(node) or is_elementwise(node)
    same = (node.op, node.target, len(node.args)) == (other.op, other.target, len(other.args))
    return known and same and not node.kwargs and not other.kwargs


# --- The scan operator, which has a body


def rebuild_scan(module: GraphModule, scan: Node, log: Log) -> None:
    """Move what no next carry depends on out of a scan's body, where a product is in it."""
    name, init, xs, additional = scan.args
    body: GraphModule = getattr(module, name.target)
    *inputs, output = [node for node in body.graph.nodes if node.op in ("placeholder", "output")]
    results = list(output.args[0])
    carries, ys = results[: len(init)], results[len(init) :]
    steps = int(xs[0].meta["example_value"].shape[0])
    feeding = ancestors(carries)
    outer = dict(zip(inputs, [None] * len(init) + [*xs] + [*additional], strict=True))
    per_step = set(inputs[: len(init) + len(xs)])
    moves: dict[int, list[Node]] = {}
    for place, y in enumerate(ys):
        operations = [
            node for node in body.graph.nodes if node in ancestors([y]) - feeding and node.op != "placeholder"
        ]
        if refusal := why_not(operations, y, per_step, feeding):
            log.add("a scan", steps, "stays", map(name_of, operations or [y]), refusal)
        else:
            log.add("a scan", steps, "moved", map(name_of, operations), MOVED)
            moves[place] = operations
    if moves:
        split_scan(module, scan, body, (inputs, outer, results, len(init), steps), moves)


def why_not(operations: list[Node], y: Node, per_step: set[Node], feeding: set[Node]) -> str:
    """Return why what a result is made of stays in the loop; "" where it may leave."""
    if not operations:
        return FEEDS
    if not any(map(is_product, operations)):
        return NO_PRODUCT
    step_values = per_step | {
        node for node in feeding if node.op != "placeholder"
    }  # weights are the same in every step
    for node in operations:
        places = [place for place, value in enumerate(node.args) if isinstance(value, Node) and value in step_values]
        step_values.add(node)
        if not (is_product(node) or is_elementwise(node)) or node.kwargs:
            return f"{name_of(node)} is no operation on rows that is known here"
        if is_product(node) and places != [ROWS[operation_of(node)]]:
            return f"the matrix of {name_of(node)} is another one in every step"
    return ""


def split_scan(
    module: GraphModule, scan: Node, body: GraphModule, parts: tuple[Any, ...], moves: dict[int, list[Node]]
) -> None:
    """Rebuild a scan without some of its results, which are computed after it from what it stacks instead."""
    inputs, outer, results, count, steps = parts
    operations = {node: node.args for nodes in moves.values() for node in nodes}  # a node that is erased loses its own
    operands = dict.fromkeys(value for values in operations.values() for value in values if isinstance(value, Node))
    crossing = [value for value in operands if value not in operations and outer.get(value) is None]
    kept_places = [place for place in range(len(results) - count) if place not in moves]
    graph, output = body.graph, next(node for node in body.graph.nodes if node.op == "output")
    with graph.inserting_before(output):  # a scan's results may not be one another, nor its inputs
        copies = [graph.call_function(torch.clone, (value,)) for value in crossing]
    output.args = (
        type(output.args[0])([*results[:count], *(results[count + place] for place in kept_places), *copies]),
    )
    graph.eliminate_dead_code()
    body.recompile()
    readers = {user.args[1]: user for user in list(scan.users)}
    with module.graph.inserting_after(scan):
        stacks = {
            value: module.graph.call_function(operator.getitem, (scan, count + len(kept_places) + number))
            for number, value in enumerate(crossing)
        }
    for position, place in enumerate(kept_places):
        if reader := readers.get(count + place):
            reader.args = (scan, count + position)
    users = [readers[count + place] for place in moves if count + place in readers]
    if not users:
        return
    sliced = inputs[count : count + len(scan.args[2])]
    values: dict[Any, Any] = {value: node for value, node in outer.items() if node is not None} | stacks
    values |= {value: Stepped(values[value]) for value in (*sliced, *stacks)}
    with module.graph.inserting_before(users[0]):
        for node, own_arguments in operations.items():
            arguments = [values[value] if isinstance(value, Node) else value for value in own_arguments]
            values[node] = Stepped(at_once(module.graph, node, arguments, steps))
    for place in moves:
        if reader := readers.get(count + place):
            reader.replace_all_uses_with(values[results[count + place]].node)


def ancestors(nodes: Iterable[Any]) -> set[Node]:
    """Return nodes and all that they are computed from."""
    seen: set[Node] = set()
    pending = [node for node in nodes if isinstance(node, Node)]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return seen


# --- Operations on rows


def at_once(graph: Graph, node: Node, arguments: list[Any], steps: int) -> Node:
    """Add an operation for all steps at once: on arrays [T, B, ...] where one step's are [B, ...]."""
    operands = [value.node if isinstance(value, Stepped) else value for value in arguments]
    if not is_product(node):
        return graph.create_node(node.op, node.target, tuple(operands))
    place = ROWS[operation_of(node)]
    operands[place] = graph.call_method("flatten", (operands[place], 0, 1))
    product = graph.create_node(node.op, node.target, tuple(operands))
    return graph.call_method("unflatten", (product, 0, (steps, -1)))


def operation_of(node: Node) -> Any:
    """Return the function that a node calls; of a method, the function of torch that it is."""
    return getattr(torch, str(node.target), None) if node.op == "call_method" else node.target


def is_product(node: Any) -> bool:
    """Return whether a node is a product of rows with a matrix."""
    return isinstance(node, Node) and node.op in ("call_function", "call_method") and operation_of(node) in ROWS


def is_elementwise(node: Node) -> bool:
    """Return whether a node treats each element by itself."""
    if node.op == "call_method":
        return node.target in METHODS
    return node.op == "call_function" and node.target in ELEMENTWISE


def name_of(node: Any) -> str:
    """Return the name of an operation."""
    target = getattr(node, "target", node)
    return str(getattr(target, "__name__", target))
