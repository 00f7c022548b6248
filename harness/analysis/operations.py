"""What a call computes in matrix products: as counted, and the least that its outputs take. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from impls.evidence import Product, flops, issued, moved_bytes
from impls.interface import GATES, Arm

LEFT_OUT = "its outputs take more than the products that were counted: a compiler computes the rest in another way"
NOT_MOVED = "a compiler made multiplications of some products, in kernels that read and write something else"


class Work(NamedTuple):
    """Of one call. None where it is not known; `missing` says why, with all that the evidence says is missing.

    `products`: issued as such. `operations`: of these and of the ones that a compiler made multiplications of, which
    are counted in the program before it. `moved_bytes`: of the products, where all were issued.
    """

    products: int | None
    operations: int | None
    moved_bytes: int | None
    missing: dict[str, str]


def work(evidence: Mapping[str, Any], least: int, item_bytes: int) -> Work:
    """The work of a call from its evidence, as recorded, and from the operations that its outputs take at least."""
    missing = dict(evidence["missing"])
    if {"everything", "products"} & missing.keys():
        return Work(None, None, None, missing)
    products, written = ([Product(*one) for one in evidence[name]] for name in ("products", "written"))
    by_products = flops(products)
    operations = max(by_products, flops(written))
    if by_products == least:
        missing.pop("operations", None)  # nothing can be left out of the least
    if "operations" in missing or operations < least:
        return Work(issued(products), None, None, {"operations": LEFT_OUT} | missing)
    if by_products < operations:
        return Work(issued(products), operations, None, missing | {"product_bytes": NOT_MOVED})
    return Work(issued(products), operations, moved_bytes(products, item_bytes), missing)


def least_operations(sizes: Mapping[str, Any], pass_: str, arm: Arm) -> int:
    """Operations of the products that every program of an arm computes: a multiplication and an addition for each term.

    The state before the first step is zero, so a program need not multiply it; and nothing asks for its gradient.
    `sizes`: B, T, I, H, O and cell.
    """
    batch, steps, inputs, size, outputs = (sizes[name] for name in "BTIHO")
    wide = len(GATES[sizes["cell"]]) * size
    recurrent, given = (steps - 1) * size * wide, arm.recurrence == "given"
    step = 0 if given else steps * inputs * wide + recurrent
    projection = 0 if arm.projection == "none" else steps * size * outputs
    if pass_ == "forward":
        return 2 * batch * (step + projection)
    back = 0 if given else steps * inputs * wide + 2 * recurrent  # of w_in; of w_rec and h
    return 2 * batch * (step + back + projection * (2 if given else 3))
