"""What a JAX program does in one call when its operations are dispatched one by one. Compiled programs: impls.hlo."""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from impls import hlo, libraries
from impls.evidence import Evidence, Product, listed
from impls.trace import Row

NO_EAGER_MEMORY = "op by op each operation is a program of its own: JAX tells no peak over all of them"
OTHER_PRODUCTS = {"conv_general_dilated", "ragged_dot", "ragged_dot_general", "scaled_matmul_wrapper", "rnn"}
UNKNOWN_PRODUCT = "products of a kind whose operands are not known here"


def profiled(call: Callable[[], None]) -> list[Row]:
    """Return the profiler's rows of one call."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        return [
            (plane.name, line.name, event.name, event.duration_ns)
            for plane in planes
            for line in plane.lines
            for event in line.events
        ]


def of_jaxpr(jaxpr: Any) -> Evidence:
    """Return the evidence of a program that runs operation by operation.

    Each operation is a kernel, and so is each function that JAX itself compiles (for instance jax.nn.relu).
    """
    kernels = Counter(equation.params.get("name", equation.primitive.name) for equation in jaxpr.eqns)
    result = Evidence(products_of(jaxpr), kernels=dict(sorted(kernels.items())), fusions=0)
    result.missing = {"temp_bytes": NO_EAGER_MEMORY}
    libraries.look(result, lambda: _add_libraries(result, jaxpr))
    if unknown := sorted({equation.primitive.name for _, equation in _equations(jaxpr)} & OTHER_PRODUCTS):
        result.missing["products"] = f"{UNKNOWN_PRODUCT}: {', '.join(unknown)}"
    return result


def products_of(jaxpr: Any) -> list[Product]:
    """Return the matrix products of a program, before XLA."""
    counts: Counter[tuple[int, int, int, int]] = Counter()
    for times, equation in _equations(jaxpr):
        if equation.primitive.name == "dot_general":
            counts[_dot(equation)] += times
    return listed(counts)


def _add_libraries(result: Evidence, jaxpr: Any) -> None:
    """Add which libraries multiply: op by op, each product is a program of its own, which is compiled here again."""
    evidence_by_product: dict[str, Evidence] = {}
    for times, equation in _equations(jaxpr):
        if equation.primitive.name != "dot_general":
            continue
        key = str((equation.params, [operand.aval for operand in equation.invars]))
        if key not in evidence_by_product:
            evidence_by_product[key] = hlo.evidence(_optimised_text(equation))
        product = evidence_by_product[key]
        for library, count in product.libraries.items():
            result.libraries[library] = result.libraries.get(library, 0) + times * count
        result.library_proof = product.library_proof | result.library_proof


def _optimised_text(equation: Any) -> str:
    """Return the optimised HLO of an operation by itself."""
    operands = [jax.ShapeDtypeStruct(operand.aval.shape, operand.aval.dtype) for operand in equation.invars]
    operation = jax.jit(lambda *arrays: equation.primitive.bind(*arrays, **equation.params))
    return str(operation.lower(*operands).compile().as_text())


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, Any]]:
    """Yield the operations of a program and of the functions it calls, each with how often it runs, loops included."""
    for equation in jaxpr.eqns:
        yield times, equation
        inner_times = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from _equations(value.jaxpr, inner_times)


def _dot(equation: Any) -> tuple[int, int, int, int]:
    """Return batch, M, K and N of a dot_general."""
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    left, right = (operand.aval.shape for operand in equation.invars)
    k, b = (math.prod(left[dim] for dim in dims) for dims in (contracted, batched))
    return b, math.prod(left) // (k * b), k, math.prod(right) // (k * b)
