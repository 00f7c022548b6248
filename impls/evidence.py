"""What a program did in one call, counted by each framework's own means. This module imports no framework."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

ITEM_BYTES = {"fp32": 4, "fp64": 8, "tf32": 4, "bf16": 2, "as_shipped": 4}


class Product(NamedTuple):
    """`times` matrix products [batch, M, K] x [batch, K, N] per call; an unbatched product has batch 1."""

    times: int
    batch: int
    m: int
    k: int
    n: int

    def __str__(self) -> str:
        batch = f"{self.batch}·" if self.batch > 1 else ""
        return f"{self.times}×{batch}[{self.m}×{self.k}×{self.n}]"


class Variable(NamedTuple):
    """A variable of a program that creates its own."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} [{'×'.join(map(str, self.shape))}]"


@dataclass
class Evidence:
    """What one call of one arm's program did. A count that is not available is None or empty; `missing` says why.

    `products`: matrix products issued, by shape.
    `written`: products in the program's source, before its compiler; empty if there is no compiler. A product that is
    written but not issued is computed in the compiler's own kernels, by multiplications and sums.
    `kernels`: name -> how often an operation, kernel or library call was started.
    `fusions`: how many of these hold several operations that a compiler combined.
    `loops`: trip counts of the symbolic loops.
    `temp_bytes`: peak memory for what is neither input nor output.
    `variables`: all variables in the program's graph, whether or not a call uses them; only for a program that creates
    its own.
    `libraries`: library -> how many products it multiplied. `library_proof`: library -> the first text that shows it.

    On a GPU also:
    `device_kernels`: name -> how often a kernel ran there.
    `device_ns`: their total time, which is less than the call's if the GPU had to wait for launches.
    `graph_launches`: CUDA graphs launched (XLA's command buffers are CUDA graphs).
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
    libraries: dict[str, int] = field(default_factory=dict)
    library_proof: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def counted(products: Counter[tuple[int, int, int, int]], kernels: Counter[str]) -> Evidence:
    """Return the evidence of products, keyed by batch, M, K and N, and of kernels, keyed by name."""
    return Evidence(listed(products), kernels=dict(sorted(kernels.items())))


def listed(products: Counter[tuple[int, int, int, int]]) -> list[Product]:
    """Return products, keyed by batch, M, K and N, as a list in the order of their shapes."""
    return [Product(times, *shape) for shape, times in sorted(products.items())]


def flops(products: Iterable[Product]) -> int:
    """Return the floating-point operations of products: a multiplication and an addition for each of M K N."""
    return sum(2 * p.times * p.batch * p.m * p.k * p.n for p in products)


def moved_bytes(products: Iterable[Product], item_bytes: int) -> int:
    """Return the bytes that products read and write, each operand and result once, at `item_bytes` per number."""
    return sum(item_bytes * p.times * p.batch * (p.m * p.k + p.k * p.n + p.m * p.n) for p in products)


def issued(products: Iterable[Product]) -> int:
    """Return the number of matrix products issued per call; a batched product counts as one."""
    return sum(p.times for p in products)
