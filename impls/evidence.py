"""What a program did in one call: counted, by each framework's own means. Imports no framework."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

ITEM_BYTES = {"fp32": 4, "fp64": 8, "tf32": 4, "bf16": 2, "as_shipped": 4}


class Product(NamedTuple):
    """`times` matrix products [batch, M, K] x [batch, K, N] a call; a plain one has batch 1."""

    times: int
    batch: int
    m: int
    k: int
    n: int

    def __str__(self) -> str:
        batch = f"{self.batch}·" if self.batch > 1 else ""
        return f"{self.times}×{batch}[{self.m}×{self.k}×{self.n}]"


class Variable(NamedTuple):
    """A variable of a program that keeps its own."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} [{'×'.join(map(str, self.shape))}]"


@dataclass
class Evidence:
    """Of one call of one arm's program. What could not be had is None or empty, and `missing` says why.

    `products`: matrix products issued, by shape. `written`: those of the program before its compiler; empty where none
    stands between. What is written and not issued is computed in the compiler's own kernels, by multiplications and
    sums. `kernels`: name -> how often an operation, kernel or library call
    was started. `fusions`: how many of them hold several operations that a compiler put together. `loops`: the trip
    counts of the symbolic loops. `temp_bytes`: memory for what is neither input nor output, at its peak. `variables`:
    all there are in the program's graph, whether or not a call uses them; only of a program that keeps its own.

    On a GPU also: `device_kernels`: name -> how often a kernel ran there; `device_ns`: how long all of them took, which
    is less than the call where the GPU waited to be told; `graph_launches`: CUDA graphs launched (XLA's command
    buffers are such).
    """

    products: list[Product] = field(default_factory=list)
    written: list[Product] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)
    fusions: int | None = None
    loops: list[int] = field(default_factory=list)
    temp_bytes: int | None = None
    device_kernels: dict[str, int] = field(default_factory=dict)
    device_ns: float | None = None
    graph_launches: int | None = None
    variables: list[Variable] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def counted(products: Counter[tuple[int, int, int, int]], kernels: Counter[str]) -> Evidence:
    """Evidence of products, by batch, M, K and N, and of kernels, by name."""
    return Evidence(listed(products), kernels=dict(sorted(kernels.items())))


def listed(products: Counter[tuple[int, int, int, int]]) -> list[Product]:
    """Products by batch, M, K and N -> in the order of their shapes."""
    return [Product(times, *shape) for shape, times in sorted(products.items())]


def flops(products: Iterable[Product]) -> int:
    """Floating-point operations of the products: a multiplication and an addition for each of M K N."""
    return sum(2 * p.times * p.batch * p.m * p.k * p.n for p in products)


def moved_bytes(products: Iterable[Product], item: int) -> int:
    """Bytes that the products read and write, each operand and result once; `item` bytes a number."""
    return sum(item * p.times * p.batch * (p.m * p.k + p.k * p.n + p.m * p.n) for p in products)


def issued(products: Iterable[Product]) -> int:
    """Matrix products issued a call; a batched one is one."""
    return sum(p.times for p in products)
