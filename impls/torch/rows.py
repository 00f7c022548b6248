"""Operations on the rows of one step of a loop, and the same done on the rows of all steps at once.

An array of a step, [B, K], becomes one of all steps, [T, B, K]. A product with a matrix that is the same in every step
is then one product of T*B rows. An operation on each element stays what it is, and so does one along the last axis,
which is then counted from the end.

Which operations treat each element by itself is torch's own statement: the tag `pointwise` of its operators.
"""

import inspect
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional

linear = functional.linear
# Products of rows with a matrix -> the place of the rows among the arguments; all others are the same in every step.
ROWS: dict[Any, int] = {torch.addmm: 1, linear: 0, torch.matmul: 0, torch.mm: 0, operator.matmul: 0}
# Operations along one axis -> its place among the arguments. They treat each row by itself if it is the last axis.
ALONG_AXIS: dict[str, int] = {
    **dict.fromkeys(("softmax", "log_softmax", "logsumexp", "sum", "mean", "amax", "amin", "prod", "var", "std"), 1),
    **{"cumsum": 1, "glu": 1, "normalize": 2},
}
NORMS = ("layer_norm", "rms_norm")  # over trailing axes, which are counted from the end as it is
ITSELF = ("dropout", "positive")  # operations that return their argument; dropout outside of training
OPERATORS: dict[Any, str] = {  # of Python -> the name of torch's operator, where it is another
    **{operator.truediv: "div", operator.mod: "remainder", operator.pos: "positive", operator.invert: "bitwise_not"},
    **{operator.and_: "bitwise_and", operator.or_: "bitwise_or", operator.xor: "bitwise_xor"},
}
UNTAGGED = {functional.hardswish, functional.logsigmoid, functional.softsign, functional.tanhshrink}  # but pointwise
# The parameters of functions that Python does not tell, where keywords may give an array.
PARAMETERS = {linear: ("input", "weight", "bias"), torch.clamp: ("input", "min", "max")}
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
    if reason := why_unknown(node):
        return reason
    operands = {place: array_of(value) for place, value in enumerate(node.args) if isinstance(value, Node)}
    if array_of(node) is None or None in operands.values():
        return f"the arrays of {name} have no shapes here"
    if any(place not in operands for place in stepped):
        return f"a number of {name} is another one in every step"
    if len({array.dtype for array in (array_of(node), *operands.values())} - {torch.bool}) > 1:
        return f"the arrays of {name} are of several types"
    if is_product(node):
        return obstacle_of_product(node, stepped, operands)
    return obstacle_on_rows(node, stepped) if is_on_rows(node) else obstacle_of_elements(node, stepped, operands)


def why_unknown(node: Node) -> str:
    """Return why an operation is none that may be done for all steps at once, whatever differs; "" if it is one."""
    name = name_of(node)
    if is_random(node):
        return f"{name} draws random numbers, which are those of its place in the program"
    if not (is_product(node) or is_elementwise(node) or is_on_rows(node)):
        return f"{name} is no operation on rows that is known here"
    if unknown := unknown_arguments(node):
        return f"{name} has an argument that is not known here: {unknown[0]}"
    return ""


def obstacle_of_product(node: Node, stepped: set[int], operands: dict[int, Any]) -> str:
    """Return why a product cannot be done for all steps at once; "" if it can. `operands`: arrays by place."""
    name, place = name_of(node), ROWS[operation_of(node)]
    if stepped != {place}:
        return f"the matrix of {name} is another one in every step"
    ranks = {position: array.dim() for position, array in operands.items()}
    most = {position: 1 if has_bias_at(node, position) else 2 for position in ranks if position != place}
    if any(ranks[position] > most[position] for position in most):
        return f"{name} is a product of more than rows with one matrix"
    return ""


def obstacle_on_rows(node: Node, stepped: set[int]) -> str:
    """Return why an operation along an axis cannot be done for all steps at once; "" if it can."""
    name = name_of(node)
    if stepped != {0}:
        return f"the weight of {name} is another one in every step"
    if own_name(node) in ALONG_AXIS and not is_along_last(node):
        return f"{name} is along another axis than the last, so that it does not treat each row by itself"
    return ""


def obstacle_of_elements(node: Node, stepped: set[int], operands: dict[int, Any]) -> str:
    """Return why an elementwise operation cannot be done for all steps at once; "" if it can."""
    name = name_of(node)
    if array_of(node).shape != torch.broadcast_shapes(*(array.shape for array in operands.values())):
        return f"{name} does not treat each element by itself here"
    if own_name(node) == "masked_fill" and 2 in stepped:
        return f"a number of {name} is another one in every step"
    return ""


def has_bias_at(node: Node, place: int) -> bool:
    """Return whether an argument of a product is what is added to it."""
    return (operation_of(node), place) in ((torch.addmm, 0), (linear, 2))


def at_once(graph: Graph, node: Node, operands: Sequence[Any], steps: int) -> Node:
    """Add an operation for some steps at once: on arrays [steps, B, ...] where one step's are [B, ...]."""
    arrays = [value.node if isinstance(value, Stepped) else value for value in operands]
    if is_on_rows(node):
        arguments, keywords = along_last(node, arrays)
        return graph.create_node(node.op, node.target, arguments, keywords)
    if own_name(node) in ITSELF:  # but a stack is an array of its own
        return graph.call_function(torch.clone, (arrays[0],))
    if not is_product(node):
        rank = array_of(node).dim()
        for place, value in enumerate(operands):
            missing = rank - array_of(node.args[place]).dim() if isinstance(value, Stepped) else 0
            for _ in range(missing):  # axes of one, so that steps meet steps
                arrays[place] = graph.call_method("unsqueeze", (arrays[place], 1))
        return graph.create_node(node.op, node.target, tuple(arrays), node.kwargs)
    place = ROWS[operation_of(node)]
    rows = array_of(node.args[place])
    if rows.dim() == 1:
        return graph.create_node(node.op, node.target, tuple(arrays), node.kwargs)
    arrays[place] = graph.call_method("flatten", (arrays[place], 0, 1))
    product = graph.create_node(node.op, node.target, tuple(arrays), node.kwargs)
    return graph.call_method("unflatten", (product, 0, (steps, rows.shape[0])))


def is_along_last(node: Node) -> bool:
    """Return whether an operation along an axis is along the last one of its array, and no other."""
    place, rank = ALONG_AXIS[own_name(node)], array_of(node.args[0]).dim()
    axis = node.args[place] if len(node.args) > place else node.kwargs.get("dim")
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    is_number = len(axes) == 1 and isinstance(axes[0], int) and not isinstance(axes[0], bool)
    return rank > 0 and is_number and axes[0] % rank == rank - 1


def along_last(node: Node, arguments: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and the keywords of an operation on rows, with its axis counted from the end."""
    place = ALONG_AXIS.get(own_name(node))
    if place is None:
        return tuple(arguments), node.kwargs
    if len(arguments) > place:
        return (*arguments[:place], -1, *arguments[place + 1 :]), node.kwargs
    return tuple(arguments), {**node.kwargs, "dim": -1}


def make_positional(graph: Graph) -> None:
    """Give arguments by place that are given by keyword, where the names of a function's parameters are known."""
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            if names := PARAMETERS.get(operation_of(node)):
                arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
                count = max((place + 1 for place, name in enumerate(names) if name in arguments), default=0)
                node.args = tuple(arguments.pop(name, None) for name in names[:count])
                node.kwargs = arguments
            elif own_name(node) and (bound := bound_arguments(node)):
                bound.apply_defaults()
                node.args, node.kwargs = bound.args, bound.kwargs


def bound_arguments(node: Node) -> inspect.BoundArguments | None:
    """Return the arguments of a Python function by their names; None of anything else."""
    signature = signature_of(node.target) if node.op == "call_function" else None
    return signature.bind(*node.args, **node.kwargs) if signature else None


@cache
def signature_of(target: Any) -> inspect.Signature | None:
    """Return the signature of a function that is written in Python and has only parameters with names."""
    if not inspect.isfunction(target):
        return None
    signature = inspect.signature(target)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return None if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} else signature


def hazard(graph: Graph) -> str:
    """Return what in a graph forbids that anything in it is done later than it is written; "" if nothing does."""
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        name = name_of(node)
        if is_in_place(node):
            return f"{name} changes an array in place, so that nothing may be done later than it is written"
        if "autocast" in name or "grad_enabled" in name or "inference_mode" in name:
            return f"{name} changes a setting in the middle, so that nothing may be done later than it is written"
    return ""


def is_in_place(node: Node) -> bool:
    """Return whether a node changes an array: by its name, or an argument that says so, by keyword or by place."""
    if node.target in OPERATORS:
        return False
    name, bound = name_of(node), bound_arguments(node)
    keywords = bound.arguments if bound else node.kwargs
    has_such_name = name.endswith("_") and not name.endswith("__")
    return has_such_name or node.target in IN_PLACE or bool(keywords.get("inplace")) or keywords.get("out") is not None


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
    """Return whether a node treats each element by itself, as torch says, and draws no random numbers."""
    if is_random(node):
        return False
    name = own_name(node)
    if name == "dropout":
        return True  # outside of training: it changes nothing
    return (node.op == "call_function" and node.target in UNTAGGED) or torch.Tag.pointwise in element_tags(name)


def is_on_rows(node: Node) -> bool:
    """Return whether a node works along one axis, or the last ones."""
    return own_name(node) in ALONG_AXIS or own_name(node) in NORMS


def is_random(node: Node) -> bool:
    """Return whether a node draws random numbers."""
    name = own_name(node)
    if name == "dropout" and node.args[2:3] == (False,):  # not in training
        return False
    return torch.Tag.nondeterministic_seeded in tags(name)


def element_tags(name: str) -> frozenset[torch.Tag]:
    """Return the tags of torch's operator, none if it is a reduction too: the maximum of two arrays, or of one."""
    return frozenset() if torch.Tag.reduction in tags(name) else tags(name)


@cache
def tags(name: str) -> frozenset[torch.Tag]:
    """Return the tags that torch gives the variants of an operator; none if it has no such operator."""
    packet = getattr(torch.ops.aten, name, None) if name else None
    overloads = packet.overloads() if packet is not None else []
    return frozenset(tag for overload in overloads for tag in getattr(packet, overload).tags)


def own_name(node: Any) -> str:
    """Return the name of torch's operator that a node calls; "" if it calls no function of torch or Python's own."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return ""
    if node.target in OPERATORS:
        return OPERATORS[node.target]
    name = name_of(node)
    owners = (torch, functional, operator)
    is_own = node.op == "call_method" or any(getattr(owner, name, None) is node.target for owner in owners)
    return name if is_own else ""


def unknown_arguments(node: Node) -> list[str]:
    """Return the arguments that are neither arrays nor numbers, and the keywords that are no numbers, as text."""
    values = [value for value in node.args if not isinstance(value, Node) and not is_constant(value)]
    keywords = [f"{key}={value}" for key, value in node.kwargs.items() if not is_constant(value)]
    return [*map(str, values), *keywords]


def is_constant(value: Any) -> bool:
    """Return whether a value is a number, a text, None, or a few of them."""
    if isinstance(value, (tuple, list)):
        return all(map(is_constant, value))
    return isinstance(value, (int, float, str, type(None)))


def is_view(node: Node) -> bool:
    """Return whether a node is another view of a matrix."""
    return node.op in ("call_function", "call_method") and name_of(node) in VIEWS


def is_pure(node: Any) -> bool:
    """Return whether a node returns the same for the same arguments, as far as is known here."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method") or unknown_arguments(node):
        return False
    return is_product(node) or is_elementwise(node) or is_on_rows(node) or is_view(node)


def name_of(node: Any) -> str:
    """Return the name of an operation."""
    target = getattr(node, "target", node)
    return str(getattr(target, "__name__", target))
