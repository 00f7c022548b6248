"""Python loops in a traced graph: their steps are written one after another, and their outputs are stacked.

A column is the same operation of every step: T nodes. A stack of a column's values is done for all steps at once where
nothing but such stacks needs them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from impls.torch.hoist_log import FEEDS, MOVED, Settings
from impls.torch.rows import (
    Stepped,
    ancestors,
    array_of,
    at_once,
    is_constant,
    is_product,
    is_pure,
    name_of,
    obstacle,
    step_bytes,
    why_unknown,
)

LOOP = "an unrolled loop"
Column = tuple[Any, ...]  # one value of every step


@dataclass(frozen=True)
class Stack:
    """A stack of one value of every step, and the axis along which it lies."""

    node: Node
    column: Column
    axis: int


@dataclass(frozen=True)
class Columns:
    """The columns of a graph that may be done at once by themselves -> those of their arguments; and why others not."""

    arguments: dict[Column, list[Column]]
    obstacles: dict[Column, str]

    def below(self, column: Column, choice: set[Column]) -> list[Column]:
        """Return the columns that are moved with one, itself last."""
        order: dict[Column, None] = {}

        def visit(column: Column) -> None:
            if column in choice and column not in order:
                for argument in self.arguments[column]:
                    visit(argument)
                order[column] = None

        visit(column)
        return list(order)

    def crossing(self, columns: Iterable[Column]) -> list[Column]:
        """Return what columns need of the loop: arguments that differ by step and are not among them."""
        columns = list(columns)
        needed = dict.fromkeys(argument for column in columns for argument in self.arguments[column])
        return [argument for argument in needed if argument not in columns and not is_unchanging(argument)]


def rebuild(graph: Graph, settings: Settings) -> None:
    """Compute what is stacked for all steps at once, where it may be. Adds to the log."""
    stacks = [stack for node in graph.nodes if (stack := as_stack(node))]
    columns = explore(stacks)
    choice, refusals = decide(columns, stacks, settings)
    values: dict[tuple[Column, int], Any] = {}
    for stack in stacks:
        steps = len(stack.column)
        names = [name_of(column[0]) for column in columns.below(stack.column, choice)]
        if names:
            settings.add(LOOP, steps, "moved", names, MOVED)
            replace(graph, stack, columns, choice, settings, values)
        elif reason := refusals.get(stack.node) or columns.obstacles.get(stack.column):
            if has_product_below(columns, stack.column):
                settings.add(LOOP, steps, "stays", [name_of(stack.column[0])], reason)
        elif has_product_below(columns, stack.column):
            settings.add(LOOP, steps, "stays", [name_of(stack.column[0])], FEEDS)


def as_stack(node: Node) -> Stack | None:
    """Return a node as a stack of two or more arrays; None if it is something else."""
    if node.op != "call_function" or node.target is not torch.stack or array_of(node) is None:
        return None
    arguments = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
    values, axis = arguments.pop("tensors"), arguments.pop("dim", 0)
    if arguments or not isinstance(values, (list, tuple)) or len(values) < 2:
        return None
    return Stack(node, tuple(values), axis % array_of(node).dim())


def explore(stacks: list[Stack]) -> Columns:
    """Return the columns under the stacks of a graph."""
    columns = Columns({}, {})
    pending = [stack.column for stack in stacks]
    while pending:
        column = pending.pop()
        if column in columns.arguments or column in columns.obstacles or is_unchanging(column):
            continue
        if reason := why_not(column):
            columns.obstacles[column] = reason
        else:
            columns.arguments[column] = arguments_of(column)
            pending.extend(columns.arguments[column])
    return columns


def arguments_of(column: Column) -> list[Column]:
    """Return the columns of an operation's arguments."""
    return list(zip(*(node.args for node in column), strict=True))


def why_not(column: Column) -> str:
    """Return why a column is not one operation that can be done for all steps at once; "" if it is."""
    first = column[0]
    if isinstance(first, Node) and (reason := why_unknown(first)):
        return reason
    if not all(isinstance(node, Node) and is_alike(node, first) for node in column):
        return f"it is not the same operation in every step: {name_of(first)} in the first"
    stepped = {place for place, argument in enumerate(arguments_of(column)) if not is_unchanging(argument)}
    return obstacle(first, stepped)


def is_alike(node: Node, other: Node) -> bool:
    """Return whether two nodes are the same operation with as many arguments, on results of the same shape."""
    same = (node.op, node.target, len(node.args)) == (other.op, other.target, len(other.args))
    if not same or node.kwargs != other.kwargs or not all(map(is_argument, (*node.args, *other.args))):
        return False
    return has_same_shape(array_of(node), array_of(other))


def is_argument(value: Any) -> bool:
    return isinstance(value, Node) or is_constant(value)


def has_same_shape(array: Any, other: Any) -> bool:
    return array is not None and other is not None and (array.shape, array.dtype) == (other.shape, other.dtype)


def is_unchanging(column: Column) -> bool:
    """Return whether a column has the same value in every step: the same node or number, or a view of the same."""
    first = column[0]
    if all(value is first for value in column):
        return True
    if not isinstance(first, Node):
        return all(type(value) is type(first) and value == first for value in column)
    if not is_pure(first) or not all(isinstance(node, Node) and is_alike(node, first) for node in column):
        return False
    return all(map(is_unchanging, arguments_of(column)))


# --- What is moved


def decide(columns: Columns, stacks: list[Stack], settings: Settings) -> tuple[set[Column], dict[Node, str]]:
    """Return the columns to move, and the stacks that would take too much memory, with the reason."""
    refusals: dict[Node, str] = {}
    while True:
        candidates = [stack for stack in stacks if stack.node not in refusals]
        choice = movable(columns, candidates)
        counted: set[Column] = set()
        for stack in candidates:
            below = columns.below(stack.column, choice)
            if reason := settings.over_budget(extra_bytes(columns, [*counted, *below], settings)) if below else "":
                refusals[stack.node] = reason
                break
            counted |= set(below)
        else:
            return choice, refusals


def movable(columns: Columns, stacks: list[Stack]) -> set[Column]:
    """Return the columns that only the stacks need, and that have a product in or under them."""
    choice: set[Column] = set()
    pending = [stack.column for stack in stacks]
    while pending:
        column = pending.pop()
        if column in columns.arguments and column not in choice:
            choice.add(column)
            pending.extend(columns.arguments[column])
    while True:
        replaced = {stack.node for stack in stacks if stack.column in choice}
        members = replaced | {node for column in choice for node in column}
        loop_nodes = ancestors(node for column in columns.crossing(choice) for node in column)
        leftovers = {column for column in choice if not loop_nodes.isdisjoint(column)}
        leftovers |= {column for column in choice if any(user not in members for node in column for user in node.users)}
        leftovers |= {column for column in choice if not any(is_product(c[0]) for c in columns.below(column, choice))}
        if not leftovers:
            return choice
        choice -= leftovers


def extra_bytes(columns: Columns, choice: list[Column], settings: Settings) -> int:
    """Return the bytes that are stacked for columns, and those of their values, beyond one step's."""
    choice = list(dict.fromkeys(choice))
    steps = max(map(len, choice))
    stacked = steps * sum(step_bytes(column[0]) for column in columns.crossing(choice))
    return stacked + (settings.at_once(steps) - 1) * sum(step_bytes(column[0]) for column in choice)


def has_product_below(columns: Columns, column: Column) -> bool:
    """Return whether a column is a product, or what it is made of, as far as it is the same in every step."""
    near = column[0].all_input_nodes if isinstance(column[0], Node) else []
    below = [c[0] for c in columns.below(column, set(columns.arguments))]
    return any(map(is_product, (column[0], *near, *below)))


# --- How it is written


def replace(
    graph: Graph,
    stack: Stack,
    columns: Columns,
    choice: set[Column],
    settings: Settings,
    values: dict[tuple[Column, int], Any],
) -> None:
    """Replace a stack by its column done at once, in pieces if the settings say so."""

    def value(column: Column, start: int, stop: int) -> Any:
        """Return the value of a column for some steps: the same for all, or Stepped."""
        if is_unchanging(column):
            return column[0]
        if (column, start) not in values:
            if column in choice:
                operands = [value(argument, start, stop) for argument in columns.arguments[column]]
                node = at_once(graph, column[0], operands, stop - start)
            else:
                node = graph.call_function(torch.stack, (list(column[start:stop]),))
            values[column, start] = Stepped(node)
        return values[column, start]

    with graph.inserting_before(stack.node):
        is_there = (stack.column, 0) in values
        pieces = [value(stack.column, start, stop).node for start, stop in settings.pieces(len(stack.column))]
        result = pieces[0] if len(pieces) == 1 else graph.call_function(torch.cat, (pieces,))
        if is_there:  # each stack is an array of its own
            result = graph.call_function(torch.clone, (result,))
        if stack.axis:
            result = graph.call_method("movedim", (result, 0, stack.axis))
            result = graph.call_method("contiguous", (result,))
    stack.node.replace_all_uses_with(result)
