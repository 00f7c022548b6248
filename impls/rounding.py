"""The effect of rounding alone on the oracle, for any order of summation: Monte Carlo arithmetic in float64.

Every operation of the oracle gets a random error of the size that rounding may cause (D. Stott Parker 1997). The spread
of the outputs then shows how far a program may differ, after all that the program itself does to an error.

A sum of n terms, rounded to nearest n times, has the error sum_k S_k d_k. The S_k are the partial sums. The d_k are the
relative errors of the additions, of mean 0 and at most u each (Higham and Mary 2019, "A new approach to probabilistic
rounding error analysis", and 2020, "Sharper probabilistic backward error analysis", where the S_k are those of random
data). If mantissas are log-uniform on [1, 2) (Benford), the d_k have the standard deviation DEVIATION u. So the error
of the sum has

    deviation <= DEVIATION u sqrt(n r) P,      P^2 = max S_b^2 + Q / 4,      Q = sum of the squares of the terms.

A library chooses its order without looking at the data: forwards, backwards, in blocks, in lanes, or any other. Its
partial sums are then either those of a random order, for which E S_k^2 <= S^2 + Q / 4, or those of the data's own
order, in which neighbours in time may be alike. S_b are the sums of the first and of the last blocks of the data's own
order, and the full sum S is one of them. r is how often a term is repeated on average: adding the same number again
causes the same rounding error again, so these errors do not average out.
"""

from collections import deque
from typing import NamedTuple

import numpy as np

from impls.interface import Data, Weights
from impls.sums import (
    TELLING,
    Accumulated,
    SizedColumns,
    SizedOuters,
    SizedTotals,
    Squares,
    partial_sums,
    repetition,
    squares_of,
    term_norms,
    times,
)

Array = np.ndarray
DEVIATION = 0.43  # standard deviation of a rounding error in u: sqrt(1/3 E), E = E[1/m^2] = 3/8 / ln 2 for mantissas m
NEAR = 8.0  # within this many standard errors of zero, rounding may change the sign of a number


class Rounding(NamedTuple):
    """The rounding errors that a precision allows at most.

    `result` and `operand` are relative errors: of an operation's result, and of what a product multiplies. `sum` and
    `step` are unit roundoffs of additions: within a product, and of one time step's result to another's. `least` is the
    smallest number.
    """

    result: float
    operand: float = 0.0
    sum: float = 2.0**-24
    step: float = 0.0
    least: float = 2.0**-149


IN_FP32 = 2 * 2.0**-23  # two units in the last place, because a library's own tanh is no more accurate
IN_TF32 = Rounding(IN_FP32, 2.0**-10, 2.0**-22)  # matrix units truncate what they add
ROUNDINGS = {
    "fp64": Rounding(2 * 2.0**-52, 0.0, 2.0**-53, least=0.0),
    "fp32": Rounding(IN_FP32),
    "tf32": IN_TF32,
    "as_shipped": IN_TF32,  # with no setting changed it may be TF32
    "bf16": Rounding(2.0**-7, step=2.0**-9, least=2.0**-133),
}


class Noise:
    """The oracle's operations with random errors of a precision's size; same methods as impls.reference.Exact.

    They compute `runs` runs at once (R in the shapes), on an axis before that of the batch. `sizes` are the operations
    of a run of the oracle on the same data and weights, which is ahead: what an operation needs of it was recorded
    since these operations were made, and is forgotten once it is read.
    """

    def __init__(self, seed: int, sizes: "Sizes", runs: int = 1) -> None:
        self.random, self.runs, self.rounding = np.random.default_rng(seed), runs, sizes.rounding
        self.deviations, self.before_relu = sizes.follow()

    def data(self, data: Data) -> Data:
        """Return float64 data in the shapes that these operations take: x [T, R, B, I], target [T, 1, B, O]."""
        x = data.x[:, None]
        return Data(data.weights, np.broadcast_to(x, (len(x), self.runs, *x.shape[2:])), data.target[:, None])

    def weights(self, w: Weights) -> Weights:
        """Return the weights as products read them: rounded once per run, and the same in every step."""
        if not self.rounding.operand:
            return w
        return w._replace(**{name: self._rounded(getattr(w, name)) for name in ("w_in", "w_rec", "w_out")})

    def product(self, a: Array, b: Array) -> Array:
        """Return the product [..., R, B, N] of a [..., R, B, K] and a weight b [K, N] or [R, K, N]."""
        return self._erring(times(self._operand(a), b))

    def outers(self, _steps: int) -> Accumulated:
        """Return the product [R, M, N] of arrays a [T, R, B, M] and b [T, R, B, N], summed over T and B."""
        return Accumulated(
            lambda a, b: np.swapaxes(rows(self._operand(a)), 1, 2) @ rows(self._operand(b)), self._erring
        )

    def columns(self, _steps: int) -> Accumulated:
        """Return the sum [R, N] of arrays [T, R, B, N] over T and B."""
        return Accumulated(lambda a: rows(a).sum(axis=1), self._erring)

    def totals(self, _steps: int) -> Accumulated:
        """Return the sum [R] of all elements of arrays [T, R, B, N] in each run."""
        return Accumulated(lambda a: rows(a).sum(axis=(1, 2)), self._erring)

    def row(self, a: Array) -> Array:
        """Return the sum [T, R, B, 1] of a [T, R, B, N] over its last axis."""
        return self._erring(a.sum(axis=-1, keepdims=True))

    def moved(self, a: Array) -> Array:
        """Return an operation's result with the error of a library's approximation, which never changes its sign."""
        noise = self._even(a).astype(np.float64)  # in float32 the least ones are denormals, which are slow
        least = np.copysign(self.rounding.least * noise, a)
        noise *= self.rounding.result
        noise *= a
        noise += a
        noise += least
        return noise

    def sigmoid(self, a: Array) -> Array:
        """Return a sigmoid with its error.

        A library may compute it as 1/2 + 1/2 tanh(a/2). The absolute error of a small result is then as large as that
        of its halves.
        """
        half = 0.5 * np.tanh(0.5 * a)
        return self.moved(0.5 + half) + self.rounding.result * half * self._even(a)

    def relu(self, a: Array) -> tuple[Array, Array]:
        """Return max(a, 0) and its slope, 0 or 1. The slope is random where rounding may change the sign of a."""
        exact = self.before_relu.popleft()
        error = np.abs(a - exact)
        near = np.abs(exact) < NEAR * np.maximum(error, np.sqrt(np.mean(np.square(error))))
        slope = np.where(near, self.random.integers(0, 2, a.shape, dtype=bool), a > 0)
        return np.maximum(a, 0), slope.astype(a.dtype)

    def _erring(self, exact: Array) -> Array:
        """Add to an exact sum the random errors of its additions and of rounding its result."""
        deviation = self.deviations.popleft()
        if np.ndim(deviation) == 3:  # [T, B, N]
            deviation = deviation[:, None]
        return exact + deviation * self.random.standard_normal(np.shape(exact), dtype=np.float32)

    def _operand(self, a: Array) -> Array:
        return a + a * (self.rounding.operand * self._even(a)) if self.rounding.operand else a

    def _rounded(self, weight: Array) -> Array:
        return self._operand(np.broadcast_to(weight, (self.runs, *weight.shape)))

    def _even(self, a: Array) -> Array:
        """Draw numbers of the shape of a, uniform on [-1, 1)."""
        return 2 * self.random.random(np.shape(a), dtype=np.float32) - 1


class Sizes:
    """The oracle's exact operations, which also record how much each sum may err and the input of each relu.

    Each follower gets, for every product and sum in order, the standard deviation of the error of each element.
    """

    def __init__(self, rounding: Rounding = ROUNDINGS["fp32"]) -> None:
        self.rounding = rounding
        self.followers: list[tuple[deque[Array], deque[Array]]] = []
        self.known: dict[tuple[object, ...], KnownWeight] = {}  # by a weight's memory

    def follow(self) -> tuple[deque[Array], deque[Array]]:
        """Return two queues that are filled from now on: with deviations, and with the inputs of each relu."""
        self.followers.append((deque(), deque()))
        return self.followers[-1]

    def weights(self, w: Weights) -> Weights:
        self.known.clear()
        return w

    def product(self, a: Array, b: Array) -> Array:
        """Return the product of a [..., K] and a weight b [K, N]: [..., N]."""
        (exact, peak), known = partial_sums(a, b), self._known(b)
        repeats = 1.0 if known.distinct else repetition(a.reshape(-1, a.shape[-1]).T, b)
        self.keep(exact, peak, term_norms(squares_of(a), known.squares), len(b), repeats)
        return exact

    def outers(self, steps: int) -> SizedOuters:
        return SizedOuters(self, steps)

    def columns(self, steps: int) -> SizedColumns:
        return SizedColumns(self, steps)

    def totals(self, steps: int) -> SizedTotals:
        return SizedTotals(self, steps)

    def row(self, a: Array) -> Array:
        """Return the sum [T, B, 1] of a [T, B, N] over its last axis; no element is negative."""
        exact, norm = a.sum(axis=-1, keepdims=True), np.linalg.norm(a, axis=-1, keepdims=True)
        self.keep(exact, exact, norm, a.shape[-1], repetition(a.reshape(-1, a.shape[-1]).T, np.ones((a.shape[-1], 1))))
        return exact

    def moved(self, a: Array) -> Array:
        return a

    def sigmoid(self, a: Array) -> Array:
        return 0.5 * (1 + np.tanh(0.5 * a))

    def relu(self, a: Array) -> tuple[Array, Array]:
        for _, before_relu in self.followers:
            before_relu.append(a)
        return np.maximum(a, 0), (a > 0).astype(a.dtype)

    def keep(self, exact: Array, peak: Array, norm: Array, terms: int, repeats: float, steps: int = 0) -> None:
        """Record the standard deviation of a sum's error, by the formula in the module's docstring.

        `steps` is the number of partial sums that are results themselves.
        """
        units = self.rounding.sum * np.sqrt(terms) + self.rounding.step * np.sqrt(steps)
        sum_error = DEVIATION * units * np.sqrt(repeats) * np.hypot(peak, norm / 2)  # no square overflows
        result_error = np.hypot(self.rounding.result * exact / np.sqrt(3), self.rounding.least)
        for deviations, _ in self.followers:
            deviations.append(np.hypot(sum_error, result_error))

    def _known(self, weight: Array) -> "KnownWeight":
        """Return what is known of a weight, which is found once for all steps."""
        memory = (weight.ctypes.data, weight.shape, weight.strides)
        if memory not in self.known:
            distinct = repetition(weight, weight) < 1 + TELLING
            self.known[memory] = KnownWeight(weight, squares_of(weight), distinct)
        return self.known[memory]


class KnownWeight(NamedTuple):
    """A weight, its squares, and whether all its rows differ. It is kept so that no other array gets its memory."""

    weight: Array
    squares: Squares
    distinct: bool


def rows(a: Array) -> Array:
    """Reshape a [T, R, B, N] to [R, T*B, N]."""
    return np.moveaxis(a, 1, 0).reshape(a.shape[1], -1, a.shape[-1])
