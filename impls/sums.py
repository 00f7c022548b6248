"""Sums whose terms come in blocks of steps, and how large the partial sums of any order of summation may be.

`impls.rounding` has the formula that their sizes are for.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray
BLOCKS = 4  # number of blocks of a sum in the data's own order
TELLING = 2.0**-12  # terms closer than this, relative to their size, count as repeated


class Keeper(Protocol):
    """What keeps the sizes of a sum: see impls.rounding.Sizes."""

    def keep(self, exact: Array, peak: Array, norm: Array, terms: int, repeats: float, steps: int = 0) -> None: ...


class Accumulated:
    """A sum over steps whose terms come in blocks of steps: the sum of what `block_sum` returns, then `finished`."""

    def __init__(
        self, block_sum: Callable[..., Array], finished: Callable[[Array], Array] = lambda total: total
    ) -> None:
        self.block_sum, self.finished = block_sum, finished
        self.total: Any = 0.0

    def add(self, *arrays: Array) -> None:
        """Add the terms of the next steps: the arrays that `block_sum` takes."""
        self.total = self.total + self.block_sum(*arrays)

    def value(self) -> Array:
        return self.finished(self.total)


class SizedOuters:
    """The product [M, N] of arrays a [t, B, M] and b [t, B, N] in blocks of steps, summed over T and B.

    Its partial sums are those of BLOCKS equal parts of the terms: of the steps with all their sequences, or of the
    sequences with all their steps.
    """

    def __init__(self, sizes: Keeper, steps: int) -> None:
        self.sizes, self.steps, self.first, self.batch = sizes, steps, 0, 0
        self.parts: list[list[Any]] = []  # of each order, the sums of its parts
        self.norm: Any = 0.0
        self.repetition = Repetition()

    def add(self, a: Array, b: Array) -> None:
        """Add the terms of the next steps."""
        rows_a, rows_b = (array.reshape(-1, array.shape[-1]) for array in (a, b))
        self.norm = np.hypot(self.norm, term_norms(squares_of(rows_a.T), squares_of(rows_b)))
        self.repetition.add(rows_a, rows_b)
        self.batch = a.shape[1]
        steps, sequences = np.arange(self.first, self.first + len(a))[:, None], np.arange(self.batch)
        orders = [steps * self.batch + sequences]
        if min(self.steps, self.batch) > 1:
            orders.append(sequences * self.steps + steps)
        edges = part_edges(self.steps * self.batch)
        self.parts = self.parts or [[0.0] * (len(edges) - 1) for _ in orders]
        for parts, places in zip(self.parts, orders, strict=True):
            part_of_row = (np.searchsorted(edges, places, side="right") - 1).ravel()
            for part in np.unique(part_of_row):
                chosen = part_of_row == part
                parts[part] = parts[part] + rows_a[chosen].T @ rows_b[chosen]
        self.first += len(a)

    def value(self) -> Array:
        (exact, peak), *others = map(peak_sums, self.parts)
        for _, other in others:
            peak = np.maximum(peak, other)
        terms = self.steps * self.batch
        self.sizes.keep(exact, peak, self.norm, terms, self.repetition.value(), self.steps)
        return exact


class SizedColumns:
    """The sum [N] of arrays [t, B, N] in blocks of steps over T and B, in either order."""

    def __init__(self, sizes: Keeper, steps: int) -> None:
        self.sizes, self.steps, self.batch = sizes, steps, 0
        self.by_step: list[Array] = []  # the sums of each step [N], and of each sequence [B, N]
        self.by_sequence: Any = 0.0
        self.norm: Any = 0.0
        self.repetition = Repetition()

    def add(self, a: Array) -> None:
        """Add the terms of the next steps."""
        terms = a.reshape(-1, a.shape[-1])
        self.batch = a.shape[1]
        self.by_step.append(a.sum(axis=1))
        self.by_sequence = self.by_sequence + a.sum(axis=0)
        self.norm = np.hypot(self.norm, np.linalg.norm(terms / scale_of(terms), axis=0) * scale_of(terms))
        self.repetition.add(terms, np.ones((len(terms), 1)))

    def value(self) -> Array:
        by_step = np.concatenate(self.by_step)
        exact, peak = by_step.sum(axis=0), np.maximum(_prefix_peak(by_step), _prefix_peak(self.by_sequence))
        self.sizes.keep(exact, peak, self.norm, self.steps * self.batch, self.repetition.value(), self.steps)
        return exact


class SizedTotals:
    """The sum of all elements of arrays [t, B, N] in blocks of steps, none of which is negative."""

    def __init__(self, sizes: Keeper, steps: int) -> None:
        self.sizes, self.steps, self.terms = sizes, steps, 0
        self.exact: Any = 0.0
        self.norm: Any = 0.0
        self.repetition = Repetition()

    def add(self, a: Array) -> None:
        """Add the terms of the next steps."""
        terms = a.reshape(-1, a.shape[-1])
        self.exact, self.terms = self.exact + a.sum(), self.terms + a.size
        self.norm = np.hypot(self.norm, np.linalg.norm(terms / scale_of(a)) * scale_of(a))
        self.repetition.add(terms, np.ones((len(terms), 1)))

    def value(self) -> Array:
        self.sizes.keep(self.exact, self.exact, self.norm, self.terms, self.repetition.value(), self.steps)
        return np.asarray(self.exact)


class Repetition:
    """How often a row of a [K, M] and b [K, N] together is repeated, on average over the rows that are not zero.

    Two random projections identify a row. Rows count as equal within TELLING of their size. Rows come in blocks.
    """

    def __init__(self) -> None:
        self.projections: list[tuple[Array, Array]] = []  # those of the blocks' rows of a and of b

    def add(self, a: Array, b: Array) -> None:
        nonzero = a.any(axis=1) & b.any(axis=1)
        random = np.random.default_rng(0)
        first, second = (
            part[nonzero] @ (random.standard_normal((part.shape[1], 2)) @ np.array([1, 1j])) for part in (a, b)
        )
        self.projections.append((first, second))

    def value(self) -> float:
        keys = np.zeros(sum(len(first) for first, _ in self.projections), complex)
        if len(keys) < 2:
            return 1.0
        for projection in map(np.concatenate, zip(*self.projections, strict=True)):
            keys += projection / (np.sqrt(np.mean(np.square(np.abs(projection)))) or 1.0)
        _, counts = np.unique(np.round(keys / TELLING), return_counts=True)
        return float(np.square(counts.astype(float)).sum() / counts.sum())


def times(a: Array, b: Array) -> Array:
    """Return the product [..., M, N] of a [..., M, K] and b [K, N] or [R, K, N], as one large product if b has no R."""
    return (a.reshape(-1, a.shape[-1]) @ b).reshape(*a.shape[:-1], b.shape[-1]) if b.ndim == 2 else a @ b


def part_edges(terms: int) -> Array:
    """Return where the parts of a sum in its own order begin and end: BLOCKS of them, or one for each term."""
    return np.linspace(0, terms, min(BLOCKS, terms) + 1).astype(int)


def partial_sums(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the product of a [..., K] and b [K, N], and the peak magnitude of sums over first or last parts of K."""
    edges = itertools.pairwise(part_edges(len(b)))
    return peak_sums([times(a[..., start:end], b[start:end]) for start, end in edges])


def peak_sums(parts: Sequence[Array]) -> tuple[Array, Array]:
    """Return the sum of arrays, and for each element the peak magnitude of the sums of the first or last of them."""
    exact = sum(parts[1:], start=parts[0])
    peak, prefix = np.abs(exact), parts[0]
    for part in parts[1:]:
        peak = np.maximum(peak, np.maximum(np.abs(prefix), np.abs(exact - prefix)))
        prefix = prefix + part
    return exact, peak


class Squares(NamedTuple):
    """The squares of an array's elements over its largest magnitude, in float32, and that magnitude."""

    squares: Array
    scale: float


def squares_of(a: Array) -> Squares:
    scale = scale_of(a)
    return Squares(np.square((a / scale).astype("float32")), scale)


def term_norms(a: Squares, b: Squares) -> Array:
    """Return, for those of a [..., K] and b [K, N], the root of the sum of squared terms; float32 has digits enough."""
    return np.sqrt(times(a.squares, b.squares).astype("float64")) * a.scale * b.scale


def scale_of(a: Array) -> float:
    """Return the largest magnitude of a, as a divisor: 1 if all elements are zero."""
    return float(max(a.max(), -a.min())) or 1.0


def _prefix_peak(a: Array) -> Array:
    """Return, for each column of a [K, N], the largest magnitude of the sums of its first or last rows: [N]."""
    prefix = np.cumsum(a, axis=0)
    return np.maximum(np.abs(prefix), np.abs(prefix[-1] - prefix)).max(axis=0)


def repetition(a: Array, b: Array) -> float:
    """Return the `Repetition` of the rows of a [K, M] and b [K, N]."""
    return sum_of(Repetition(), a, b)


def sum_of(accumulated: Any, *arrays: Array) -> Any:
    """Return what accumulates in one block."""
    accumulated.add(*arrays)
    return accumulated.value()
