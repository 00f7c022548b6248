"""A transformation of PyTorch programs that takes work out of loops.

Dynamo traces a function into a graph: a Python loop as its steps one after another, torch's scan operator as a call
with a body. What no later step needs is done for all steps at once: T small matrix products become one. `hoist` does
this to the graph, before its gradients are taken, and has Inductor compile the result.

Moved are operations that treat each row by itself (impls.torch.rows), where a product is among them. Everything else
stays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule

from impls.torch import private, scan_loops, unrolled_loops
from impls.torch.hoist_log import Settings
from impls.torch.rows import hazard, make_positional, name_of

Backend = Callable[[GraphModule, list[Any]], Callable[..., Any]]


def hoist(
    f: Callable[..., Any],
    *,
    chunk: int | None = None,
    memory_budget: int | None = None,
    log: list[str] | None = None,
    options: dict[str, Any] | None = None,
    compiler: str = "inductor",
) -> Callable[..., Any]:
    """Return a function that computes what `f` does, compiled, with the work taken out of its loops.

    It can be called and differentiated as `torch.compile(f, fullgraph=True, dynamic=False)` can. Results are equal to
    rounding.

    `chunk`: steps that are done at once after a loop; all of them without it. `memory_budget`: bytes that moving may
    take in a loop; what would exceed it stays. They are those of the values that are stacked for it, and of the
    temporary values of the steps done at once, beyond one step's (an upper bound: Inductor fuses many of them).
    `log`: a list that each compilation appends a line to for each group of operations that was moved, or stays, with
    the reason. `options`: Inductor's. `compiler`: inductor, or eager, which runs the graph operation by operation.
    Raises ValueError if chunk is less than 1, or the compiler is another.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is a number of steps, at least 1, and not {chunk}")
    if compiler not in ("inductor", "eager"):
        raise ValueError(f"the compiler is inductor or eager, and not {compiler}")
    settings = Settings(chunk, memory_budget, [] if log is None else log)
    backend = partial(compile_hoisted, settings=settings, options=options) if compiler == "inductor" else None
    return torch.compile(f, backend=backend or partial(run_hoisted, settings=settings), fullgraph=True, dynamic=False)


def compile_hoisted(
    module: GraphModule, inputs: list[Any], settings: Settings, options: dict[str, Any] | None
) -> Callable[..., Any]:
    """Return a traced graph compiled by Inductor, after its loops were rebuilt: a backend of torch.compile."""
    return private.compile_by_inductor(transformed(module, settings), inputs, options)


def run_hoisted(module: GraphModule, inputs: list[Any], settings: Settings) -> Callable[..., Any]:
    """Return a traced graph as it is, after its loops were rebuilt: a backend of torch.compile."""
    return transformed(module, settings).forward


def transformed(module: GraphModule, settings: Settings) -> GraphModule:
    """Return a traced graph with its loops rebuilt, in place; loops inside a scan's body first."""
    for node in list(module.graph.nodes):
        if private.is_higher_order(node.target):
            if node.target is not private.scan_higher_order():
                settings.log.append(f"{name_of(node)}: stays: a region of its own is not entered")
                continue
            body = getattr(module, node.args[0].target)
            if not hazard(body.graph):
                transformed(body, settings)
    if reason := hazard(module.graph):
        settings.log.append(f"the whole program: stays: {reason}")
        return module
    make_positional(module.graph)
    for node in list(module.graph.nodes):
        if node.target is private.scan_higher_order():
            scan_loops.rebuild(module, node, settings)
    unrolled_loops.rebuild(module.graph, settings)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module
