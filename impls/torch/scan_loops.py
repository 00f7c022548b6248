"""Torch's scan operator in a traced graph: a call with a body, whose results are carries and stacked outputs (ys)."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from impls.torch.hoist_log import FEEDS, MOVED, NO_PRODUCT, Settings
from impls.torch.rows import (
    Stepped,
    ancestors,
    array_of,
    at_once,
    hazard,
    is_product,
    is_pure,
    name_of,
    obstacle,
    step_bytes,
)

LOOP = "a scan"


@dataclass(frozen=True)
class Scan:
    """A scan: its call, its body, and the steps.

    `carries`: the body's inputs that hold the carry; `sliced`: those that hold a step's slice of the xs; `constants`:
    those that are the same in every step. `outer`: what the call was given for the latter two.
    """

    call: Node
    body: GraphModule
    steps: int
    carries: list[Node]
    sliced: list[Node]
    constants: list[Node]
    outer: dict[Node, Any]

    @property
    def results(self) -> list[Any]:
        """Return the body's results: the next carries, then the ys."""
        return list(self.output.args[0])

    @property
    def output(self) -> Node:
        return next(node for node in self.body.graph.nodes if node.op == "output")

    @property
    def ys(self) -> list[Any]:
        return self.results[len(self.carries) :]

    @property
    def feeding(self) -> set[Node]:
        """Return what the next carries are computed from."""
        return ancestors(self.results[: len(self.carries)])

    def unchanging(self) -> set[Node]:
        """Return the body's values that are the same in every step: constants, and what is made of them alone."""
        found = set(self.constants)
        for node in self.body.graph.nodes:
            if is_pure(node) and node.all_input_nodes and found.issuperset(node.all_input_nodes):
                found.add(node)
        return found


def rebuild(module: GraphModule, call: Node, settings: Settings) -> None:
    """Move what no next carry depends on out of a scan's body, where a product is in it. Adds to the log."""
    scan = as_scan(module, call)
    refusal = hazard(scan.body.graph) or ("there is nothing to do at once" if scan.steps < 2 else "")
    if refusal:
        names = [name_of(node) for node in scan.body.graph.nodes if is_product(node)]
        settings.add(LOOP, scan.steps, "stays", names, refusal)
        return
    moves: dict[int, list[Node]] = {}  # places of ys -> what they are made of
    unchanging = scan.unchanging()
    obstacles = {node: reason for node in scan.body.graph.nodes if (reason := why_not(node, unchanging))}
    staying = scan.feeding | ancestors(obstacles)
    for place, y in enumerate(scan.ys):
        above = ancestors([y]) - scan.feeding
        operations = [node for node in scan.body.graph.nodes if node in above - staying and node.op != "placeholder"]
        together = list(dict.fromkeys(node for nodes in (*moves.values(), operations) for node in nodes))
        if not any(is_product(node) for node in operations if node not in unchanging):
            operations = [node for node in scan.body.graph.nodes if node in above and node.op != "placeholder"]
            reason = next((obstacles[node] for node in operations if node in obstacles), NO_PRODUCT if above else FEEDS)
        else:
            reason = settings.over_budget(extra_bytes(together, scan, settings))
        settings.add(LOOP, scan.steps, "stays" if reason else "moved", map(name_of, operations or [y]), reason or MOVED)
        if not reason:
            moves[place] = operations
    if moves:
        split(module, scan, moves, unchanging, settings)


def as_scan(module: GraphModule, call: Node) -> Scan:
    """Return a call of the scan operator with its body, taken apart."""
    name, init, xs, constants = call.args
    body = getattr(module, name.target)
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    first, second = len(init), len(init) + len(xs)
    outer = dict(zip(inputs[first:], (*xs, *constants), strict=True))
    steps = int(array_of(xs[0]).shape[0])
    return Scan(call, body, steps, inputs[:first], inputs[first:second], inputs[second:], outer)


def why_not(node: Node, unchanging: set[Node]) -> str:
    """Return why an operation of a body cannot be done for all steps at once; "" where it can, or need not."""
    if node.op in ("placeholder", "output") or node in unchanging:
        return ""
    stepped = {place for place, value in enumerate(node.args) if isinstance(value, Node) and value not in unchanging}
    return obstacle(node, stepped)


def crossing(operations: Iterable[Node], scan: Scan, unchanging: set[Node]) -> list[Node]:
    """Return what operations need of the loop that its call was not given."""
    operations = list(operations)
    needed = dict.fromkeys(value for node in operations for value in node.all_input_nodes)
    return [node for node in needed if node not in operations and node not in unchanging and node not in scan.outer]


def extra_bytes(operations: list[Node], scan: Scan, settings: Settings) -> int:
    """Return the bytes that the loop stacks for operations, and those of their values, beyond one step's."""
    unchanging = scan.unchanging()
    stacked = scan.steps * sum(map(step_bytes, crossing(operations, scan, unchanging)))
    values = [node for node in operations if node not in unchanging and array_of(node) is not None]
    return stacked + (settings.at_once(scan.steps) - 1) * sum(map(step_bytes, values))


# --- How it is written


def split(
    module: GraphModule, scan: Scan, moves: dict[int, list[Node]], unchanging: set[Node], settings: Settings
) -> None:
    """Rebuild a scan without some of its ys, which are computed after it from what it stacks instead."""
    moved = [node for node in scan.body.graph.nodes if any(node in nodes for nodes in moves.values())]
    crossed = crossing(moved, scan, unchanging)
    count, graph = len(scan.carries), module.graph
    kept_places = [place for place in range(len(scan.ys)) if place not in moves]
    readers = {user.args[1] - count: user for user in scan.call.users}  # by the places of what they read among the ys
    first = next((user for user in scan.call.users if user.args[1] - count in moves), None)
    if first is not None:
        with graph.inserting_after(scan.call):
            stacks = {
                node: graph.call_function(operator.getitem, (scan.call, count + len(kept_places) + position))
                for position, node in enumerate(crossed)
            }
        with graph.inserting_before(first):
            values = unchanging_values(graph, scan, unchanging)
            pieces = []
            for piece in settings.pieces(scan.steps):
                whole = {node: scan.outer[node] for node in scan.sliced} | stacks
                given = values | sliced(graph, whole, piece, scan.steps)
                pieces.append(done_at_once(graph, moved, given, piece[1] - piece[0]))
            for place in moves.keys() & readers.keys():
                parts = [done[scan.ys[place]].node for done in pieces]
                result = graph.call_function(torch.cat, (parts,)) if parts[1:] else parts[0]
                readers[place].replace_all_uses_with(result)
    for position, place in enumerate(kept_places):
        if reader := readers.get(place):
            reader.args = (scan.call, count + position)
    stack_instead(scan, kept_places, crossed)


def stack_instead(scan: Scan, kept_places: list[int], crossed: list[Node]) -> None:
    """Have a scan's body return some of its ys, and then what crosses."""
    results, output, graph = scan.results, scan.output, scan.body.graph
    kept = [scan.ys[place] for place in kept_places]
    with graph.inserting_before(output):  # a scan's results may not be one another, nor its inputs
        copies = [graph.call_function(torch.clone, (node,)) for node in crossed]
    output.args = (type(output.args[0])([*results[: len(scan.carries)], *kept, *copies]),)
    graph.eliminate_dead_code()
    scan.body.recompile()


def sliced(graph: Graph, whole: dict[Node, Any], piece: tuple[int, int], steps: int) -> dict[Node, Any]:
    """Return the steps of a piece of what all steps have."""
    start, stop = piece
    if (start, stop) == (0, steps):
        return {node: Stepped(value) for node, value in whole.items()}
    return {
        node: Stepped(graph.call_function(torch.narrow, (value, 0, start, stop - start)))
        for node, value in whole.items()
    }


def done_at_once(graph: Graph, moved: list[Node], values: dict[Node, Any], steps: int) -> dict[Node, Any]:
    """Return all values, with those of the operations that are done for some steps at once."""
    for node in moved:
        if node not in values:
            operands = [values[value] if isinstance(value, Node) else value for value in node.args]
            values[node] = Stepped(at_once(graph, node, operands, steps))
    return values


def unchanging_values(graph: Graph, scan: Scan, unchanging: set[Node]) -> dict[Node, Any]:
    """Return what is the same in every step; what is made of constants is added to the graph."""
    values: dict[Node, Any] = {node: scan.outer[node] for node in scan.constants}
    for node in scan.body.graph.nodes:
        if node in unchanging and node not in values:
            operands = tuple(values[value] if isinstance(value, Node) else value for value in node.args)
            values[node] = graph.create_node(node.op, node.target, operands, node.kwargs)
    return values
