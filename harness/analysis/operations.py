"""Matrix products of a call: its operations as counted, and the fewest that its outputs require.

Pure: the same evidence gives the same work.
"""

from typing import NamedTuple

from harness.study.study import Workload
from impls.evidence import Evidence, flops, issued, moved_bytes
from impls.interface import GATES, Arm

LEFT_OUT = "its outputs take more than the products that were counted: a compiler computes the rest in another way"
NOT_MOVED = "a compiler made multiplications of some products, in kernels that read and write something else"


class Work(NamedTuple):
    """Work of one call, where None is not known.

    `products` is the number issued as products. `operations` is those of these products and of the ones that a compiler
    turned into multiplications, which are counted in the program before the compiler. `moved_bytes` is that of the
    products, where all were issued. `missing` says why a value is not known, and holds all that the evidence says is
    missing.
    """

    products: int | None
    operations: int | None
    moved_bytes: int | None
    missing: dict[str, str]


def work_from_evidence(evidence: Evidence, least: int, item_bytes: int) -> Work:
    """Return the work of a call from its recorded evidence.

    `least` is the least number of operations that the call's outputs require.
    """
    missing = dict(evidence.missing)
    if {"everything", "products"} & missing.keys():
        return Work(None, None, None, missing)
    products, issued_operations = evidence.products, flops(evidence.products)
    operations = max(issued_operations, flops(evidence.written))
    if issued_operations == least:
        missing.pop("operations", None)  # nothing can be left out of the least
    if "operations" in missing or operations < least:
        return Work(issued(products), None, None, {"operations": LEFT_OUT} | missing)
    if issued_operations < operations:
        return Work(issued(products), operations, None, missing | {"product_bytes": NOT_MOVED})
    return Work(issued(products), operations, moved_bytes(products, item_bytes), missing)


def least_operations(workload: Workload, pass_: str, arm: Arm) -> int:
    """Return the operations of the products that every program of an arm computes.

    Each term is a multiplication and an addition.
    The state before the first step is zero, so a program need not multiply it, and nothing uses its gradient.
    """
    batch, steps, inputs, size, outputs = (getattr(workload, name) for name in "BTIHO")
    width = len(GATES[workload.cell]) * size
    recurrent, precomputed = (steps - 1) * size * width, arm.recurrence == "given"
    step = 0 if precomputed else steps * inputs * width + recurrent
    projection = 0 if arm.projection == "none" else steps * size * outputs
    if pass_ != "train":
        return 2 * batch * workload.layers * (step + projection)
    backward = 0 if precomputed else steps * inputs * width + 2 * recurrent  # of w_in; of w_rec and h
    layer = step + backward + projection * (2 if precomputed else 3)
    between = (workload.layers - 1) * steps * inputs * width  # the gradient of a layer's input
    return 2 * batch * (workload.layers * layer + between)
