"""Operations on the rows of one step of a loop, and the same done on the rows of all steps at once.

An array of a step, [B, K], becomes one of all steps, [T, B, K]. A product with a matrix that is the same in every step
is then one product of T*B rows; an operation on each element stays what it is.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

linear = torch.nn.functional.linear
# Products of rows with a matrix -> the place of the rows among the arguments; all others are the same in every step.
ROWS: dict[Any, int] = {torch.addmm: 1, linear: 0, torch.matmul: 0, torch.mm: 0, operator.matmul: 0}
ELEMENTWISE = {
    *(torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.neg, torch.clone, torch.nn.functional.relu),
    *(torch.nn.functional.gelu, torch.nn.functional.silu, torch.add, torch.sub, torch.mul, torch.div),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
}
METHODS = ("clone", "relu", "tanh", "sigmoid", "exp", "add", "sub", "mul", "div", "matmul", "mm")
VIEWS = ("t", "transpose", "permute", "swapaxes")  # of a matrix that is the same in every step
IN_PLACE = {
    *(operator.setitem, operator.delitem, operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(operator.ifloordiv, operator.imod, operator.ipow, operator.imatmul, operator.iand, operator.ior, operator.ixor),
}


@dataclass(frozen=True)
class Stepped:
    """A value that differs by step, of all steps together: a node of [T, ...]."""

    node: Node


def array_of(node: Any) -> Any:
    """Return a node's array as it was traced, with shape, dtype and no numbers; None where it has none."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def step_bytes(node: Node) -> int:
    """Return the bytes of one step's array."""
    array = array_of(node)
    return int(array.numel() * array.element_size())


def obstacle(node: Node, stepped: set[int]) -> str:
    """Return why an operation cannot be done for all steps at once; "" if it can.

    `stepped`: the places of the arguments that differ by step.
    """
    name = name_of(node)
    if not (is_product(node) or is_elementwise(node)) or node.kwargs:
        return f"{name} is no operation on rows that is known here"
    if any(isinstance(value, bool) for value in node.args):
        return f"{name} may work in place"
    operands = {place: array_of(value) for place, value in enumerate(node.args) if isinstance(value, Node)}
    if array_of(node) is None or None in operands.values():
        return f"the arrays of {name} have no shapes here"
    if any(place not in operands for place in stepped):
        return f"a number of {name} is another one in every step"
    if any(array.dtype != array_of(node).dtype for array in operands.values()):
        return f"the arrays of {name} are of several types"
    if not is_product(node):
        return ""
    place = ROWS[operation_of(node)]
    if stepped != {place}:
        return f"the matrix of {name} is another one in every step"
    ranks = {position: array.dim() for position, array in operands.items()}
    most = {position: 1 if has_bias_at(node, position) else 2 for position in ranks if position != place}
    if any(ranks[position] > most[position] for position in most):
        return f"{name} is a product of more than rows with one matrix"
    return ""


def has_bias_at(node: Node, place: int) -> bool:
    """Return whether an argument of a product is what is added to it."""
    return (operation_of(node), place) in ((torch.addmm, 0), (linear, 2))


def at_once(graph: Graph, node: Node, operands: Sequence[Any], steps: int) -> Node:
    """Add an operation for some steps at once: on arrays [steps, B, ...] where one step's are [B, ...]."""
    arrays = [value.node if isinstance(value, Stepped) else value for value in operands]
    if not is_product(node):
        rank = array_of(node).dim()
        for place, value in enumerate(operands):
            missing = rank - array_of(node.args[place]).dim() if isinstance(value, Stepped) else 0
            for _ in range(missing):  # axes of one, so that steps meet steps
                arrays[place] = graph.call_method("unsqueeze", (arrays[place], 1))
        return graph.create_node(node.op, node.target, tuple(arrays))
    place = ROWS[operation_of(node)]
    rows = array_of(node.args[place])
    if rows.dim() == 1:
        return graph.create_node(node.op, node.target, tuple(arrays))
    arrays[place] = graph.call_method("flatten", (arrays[place], 0, 1))
    product = graph.create_node(node.op, node.target, tuple(arrays))
    return graph.call_method("unflatten", (product, 0, (steps, rows.shape[0])))


def hazard(graph: Graph) -> str:
    """Return what in a graph forbids that anything in it is done later than it is written; "" if nothing does."""
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        name = name_of(node)
        is_in_place = name.endswith("_") and not name.endswith("__")
        if is_in_place or node.target in IN_PLACE or node.kwargs.get("inplace") or "out" in node.kwargs:
            return f"{name} changes an array in place, so that nothing may be done later than it is written"
        if "autocast" in name or "grad_enabled" in name or "inference_mode" in name:
            return f"{name} changes a setting in the middle, so that nothing may be done later than it is written"
    return ""


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


def is_view(node: Node) -> bool:
    """Return whether a node is another view of a matrix."""
    return node.op in ("call_function", "call_method") and name_of(node) in VIEWS


def is_pure(node: Any) -> bool:
    """Return whether a node returns the same for the same arguments, as far as is known here."""
    return isinstance(node, Node) and (is_product(node) or is_elementwise(node) or is_view(node)) and not node.kwargs


def name_of(node: Any) -> str:
    """Return the name of an operation."""
    target = getattr(node, "target", node)
    return str(getattr(target, "__name__", target))
