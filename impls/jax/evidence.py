"""What a JAX program does in one call when its operations are dispatched one by one; compiled ones are HLO."""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from impls.evidence import Evidence, Product, listed
from impls.trace import Row

NO_EAGER_MEMORY = "op by op each operation is a program of its own: JAX tells no peak over all of them"


def profiled(call: Callable[[], None]) -> list[Row]:
    """The profiler's rows of one call."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (written,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(written)).planes
        return [
            (plane.name, line.name, event.name, event.duration_ns)
            for plane in planes
            for line in plane.lines
            for event in line.events
        ]


def of_jaxpr(jaxpr: Any) -> Evidence:
    """An operation is a kernel, and so is a function that JAX itself compiles (jax.nn.relu, say)."""
    kernels = Counter(equation.params.get("name", equation.primitive.name) for equation in jaxpr.eqns)
    named = dict(sorted(kernels.items()))
    return Evidence(products_of(jaxpr), kernels=named, fusions=0, missing={"temp_bytes": NO_EAGER_MEMORY})


def products_of(jaxpr: Any) -> list[Product]:
    """The matrix products of a program, before XLA."""
    found: Counter[tuple[int, int, int, int]] = Counter()
    for times, equation in _equations(jaxpr):
        if equation.primitive.name == "dot_general":
            found[_dot(equation)] += times
    return listed(found)


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, Any]]:
    """Of a program and of the functions it calls, each with how often it is run; one in a loop, as often as that is."""
    for equation in jaxpr.eqns:
        yield times, equation
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from _equations(value.jaxpr, inner)


def _dot(equation: Any) -> tuple[int, int, int, int]:
    """Batch, M, K, N of a dot_general."""
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    left, right = (operand.aval.shape for operand in equation.invars)
    k, b = (math.prod(left[dim] for dim in dims) for dims in (contracted, batched))
    return b, math.prod(left) // (k * b), k, math.prod(right) // (k * b)
