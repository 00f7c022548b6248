"""What rounding alone may do to the oracle, in whatever order a library adds: Monte Carlo arithmetic in float64.

Every operation of the oracle gets a random error of the size that rounding may give it (D. Stott Parker 1997). What
a program may differ by is then seen at its outputs, after all that the program itself does to an error.

A sum of n terms, rounded to nearest n times, errs by sum_k S_k d_k, where S_k are the partial sums and d_k the relative
errors of the additions, of mean 0 and at most u each (Higham and Mary 2019, "A new approach to probabilistic rounding
error analysis", and 2020, "Sharper probabilistic backward error analysis", whose S_k are those of random data). With
mantissas log-uniform on [1, 2) (Benford) the d_k have the standard deviation DEVIATION u. So the sum's error has

    deviation <= DEVIATION u sqrt(n r) P,      P^2 = max S_b^2 + Q / 4,      Q = sum of the squares of the terms.

A library chooses its order without looking at the data: it may be any order, forwards, backwards, in blocks, in lanes,
and its partial sums are then those of a random order, E S_k^2 <= S^2 + Q / 4, or those of the data's own
order, where neighbours in time may be alike: S_b are the sums of the first and of the last blocks of that order, and S
is one of them. r is how often a term is repeated on average: adding the same number again rounds alike again, so that
these errors do not average out.
"""

import itertools
from typing import NamedTuple

import numpy as np

from impls.interface import Data, Weights

Array = np.ndarray
BLOCKS = 4  # of a sum in the data's own order
DEVIATION = 0.43  # of a rounding error in u: sqrt(1/3 E[1/m^2]), E = 3/8 / ln 2 over mantissas m
TELLING = 2.0**-12  # terms closer than this, relative to their size, count as repeated
NEAR = 8.0  # standard errors around zero in which the sign of a number is rounding's to choose


class Rounding(NamedTuple):
    """What a precision may do at most: relative errors of an operation's result, of what a product multiplies, and the
    unit roundoff of additions, in a product and of one time step's result to another's; and its smallest number.
    """

    result: float
    operand: float = 0.0
    sum: float = 2.0**-24
    step: float = 0.0
    least: float = 2.0**-149


IN_FP32 = 2 * 2.0**-23  # two units in the last place: a library's own tanh is no better
IN_TF32 = Rounding(IN_FP32, 2.0**-10, 2.0**-22)  # matrix units cut off what they add
ROUNDINGS = {
    "fp64": Rounding(2 * 2.0**-52, 0.0, 2.0**-53, least=0.0),
    "fp32": Rounding(IN_FP32),
    "tf32": IN_TF32,
    "as_shipped": IN_TF32,  # where nothing was set it may be TF32
    "bf16": Rounding(2.0**-7, step=2.0**-9, least=2.0**-133),
}


class Noise:
    """Operations of the oracle (impls.reference.Exact has the same) with random errors of a precision's size.

    They are those of `runs` runs at once, whose axis comes before that of the batch. `sizes` are those of a run of the
    oracle on the same data and weights.
    """

    def __init__(self, seed: int, sizes: "Sizes", runs: int = 1) -> None:
        self.random, self.runs, self.rounding = np.random.default_rng(seed), runs, sizes.rounding
        self.deviations, self.before_relu = iter(sizes.deviations), iter(sizes.before_relu)

    def data(self, data: Data) -> Data:
        """Float64 data -> what a run of the oracle with these operations takes: x [T, R, B, I], target [T, 1, B, O]."""
        x = data.x[:, None]
        return Data(data.weights, np.broadcast_to(x, (len(x), self.runs, *x.shape[2:])), data.target[:, None])

    def weights(self, w: Weights) -> Weights:
        """The weights as products see them: in each run rounded once, the same in every step."""
        if not self.rounding.operand:
            return w
        return w._replace(**{name: self._rounded(getattr(w, name)) for name in ("w_in", "w_rec", "w_out")})

    def product(self, a: Array, b: Array) -> Array:
        """a [..., R, B, K] x b [K, N] or [R, K, N], a weight -> [..., R, B, N]."""
        return self._erring(times(self._operand(a), b))

    def outer(self, a: Array, b: Array) -> Array:
        """a [T, R, B, M], b [T, R, B, N] -> [R, M, N], summed over T and B."""
        return self._erring(np.swapaxes(rows(self._operand(a)), 1, 2) @ rows(self._operand(b)))

    def column(self, a: Array) -> Array:
        """a [T, R, B, N] -> [R, N], summed over T and B."""
        return self._erring(rows(a).sum(axis=1))

    def total(self, a: Array) -> Array:
        """a [T, R, B, N] -> the sums [R] of all."""
        return self._erring(rows(a).sum(axis=(1, 2)))

    def moved(self, a: Array) -> Array:
        """The result of an operation that a library may approximate; none gets another sign."""
        even = self._even(a)
        return a + a * (self.rounding.result * even) + np.copysign(self.rounding.least * even, a)

    def sigmoid(self, a: Array) -> Array:
        """Of a sigmoid, which may be 1/2 + 1/2 tanh(a/2): where it is small it then errs as its halves do."""
        half = 0.5 * np.tanh(0.5 * a)
        return self.moved(0.5 + half) + self.rounding.result * half * self._even(a)

    def relu(self, a: Array) -> tuple[Array, Array]:
        """max(a, 0), and its slope, 0 or 1: drawn where rounding may choose the sign of a."""
        exact = next(self.before_relu)
        error = np.abs(a - exact)
        near = np.abs(exact) < NEAR * np.maximum(error, np.sqrt(np.mean(np.square(error))))
        slope = np.where(near, self.random.integers(0, 2, a.shape, dtype=bool), a > 0)
        return np.maximum(a, 0), slope.astype(a.dtype)

    def _erring(self, exact: Array) -> Array:
        """A sum, and the rounding of its result, with their errors."""
        deviation = next(self.deviations)
        if np.ndim(deviation) == 3:  # [T, B, N]
            deviation = deviation[:, None]
        return exact + deviation * self.random.standard_normal(np.shape(exact), dtype=np.float32)

    def _operand(self, a: Array) -> Array:
        return a + a * (self.rounding.operand * self._even(a)) if self.rounding.operand else a

    def _rounded(self, weight: Array) -> Array:
        return self._operand(np.broadcast_to(weight, (self.runs, *weight.shape)))

    def _even(self, a: Array) -> Array:
        """Uniform on [-1, 1)."""
        return 2 * self.random.random(np.shape(a), dtype=np.float32) - 1


class Sizes:
    """The oracle's operations, exact, which keep how much each sum may err, and what each relu was given.

    `deviations`: of every product and sum, in order, the standard deviation of each element.
    """

    def __init__(self, rounding: Rounding = ROUNDINGS["fp32"]) -> None:
        self.rounding = rounding
        self.deviations: list[Array] = []
        self.before_relu: list[Array] = []
        self.distinct: dict[tuple[object, ...], bool] = {}  # whether no two rows of a weight are alike, by its place

    def weights(self, w: Weights) -> Weights:
        return w

    def product(self, a: Array, b: Array) -> Array:
        """a [..., K] x b [K, N], a weight -> [..., N]."""
        exact, peak = partial_sums(a, b)
        self._keep(exact, peak, _norms(a, b), len(b), self._repeats(a, b))
        return exact

    def outer(self, a: Array, b: Array) -> Array:
        """a [T, B, M], b [T, B, N] -> [M, N], summed over T and B, whichever first."""
        rows_a, rows_b = (each.reshape(-1, each.shape[-1]) for each in (a, b))
        exact, peak = partial_sums(rows_a.T, rows_b)
        if min(a.shape[:2]) > 1:
            other_a, other_b = (np.swapaxes(each, 0, 1).reshape(-1, each.shape[-1]) for each in (a, b))
            peak = np.maximum(peak, partial_sums(other_a.T, other_b)[1])
        self._keep(exact, peak, _norms(rows_a.T, rows_b), len(rows_a), repetition(rows_a, rows_b), len(a))
        return exact

    def column(self, a: Array) -> Array:
        """a [T, B, N] -> [N], summed over T and B, whichever first."""
        terms = a.reshape(-1, a.shape[-1])
        peak = np.maximum(_prefix_peak(a.sum(axis=1)), _prefix_peak(a.sum(axis=0)))
        exact, repeats = terms.sum(axis=0), repetition(terms, np.ones((len(terms), 1)))
        self._keep(
            exact, peak, np.linalg.norm(terms / _scale(terms), axis=0) * _scale(terms), len(terms), repeats, len(a)
        )
        return exact

    def total(self, a: Array) -> Array:
        """a [T, B, N], no number negative -> the sum of all."""
        terms, exact = a.reshape(-1, a.shape[-1]), a.sum()
        norm = np.asarray(np.linalg.norm(terms / _scale(a)) * _scale(a))
        self._keep(exact, exact, norm, a.size, repetition(terms, np.ones((len(terms), 1))), len(a))
        return exact

    def moved(self, a: Array) -> Array:
        return a

    def sigmoid(self, a: Array) -> Array:
        return 0.5 * (1 + np.tanh(0.5 * a))

    def relu(self, a: Array) -> tuple[Array, Array]:
        self.before_relu.append(a)
        return np.maximum(a, 0), (a > 0).astype(a.dtype)

    def _keep(self, exact: Array, peak: Array, norm: Array, terms: int, repeats: float, steps: int = 0) -> None:
        """The deviation of a sum's result, of what is said above. `steps`: partial sums that are results themselves."""
        units = self.rounding.sum * np.sqrt(terms) + self.rounding.step * np.sqrt(steps)
        of_sum = DEVIATION * units * np.sqrt(repeats) * np.hypot(peak, norm / 2)  # no square overflows
        of_result = np.hypot(self.rounding.result * exact / np.sqrt(3), self.rounding.least)
        self.deviations.append(np.hypot(of_sum, of_result))

    def _repeats(self, a: Array, b: Array) -> float:
        """Of a product's terms; a weight with no row like another, as most are, is looked at once."""
        place = (b.ctypes.data, b.shape, b.strides)
        if place not in self.distinct:
            self.distinct[place] = repetition(b, b) < 1 + TELLING
        return 1.0 if self.distinct[place] else repetition(a.reshape(-1, a.shape[-1]).T, b)


def rows(a: Array) -> Array:
    """a [T, R, B, N] -> [R, T*B, N]."""
    return np.moveaxis(a, 1, 0).reshape(a.shape[1], -1, a.shape[-1])


def times(a: Array, b: Array) -> Array:
    """a [..., M, K] x b [K, N] or [R, K, N] -> [..., M, N]; one large product where it can be."""
    return (a.reshape(-1, a.shape[-1]) @ b).reshape(*a.shape[:-1], b.shape[-1]) if b.ndim == 2 else a @ b


def partial_sums(a: Array, b: Array) -> tuple[Array, Array]:
    """a [..., K] x b [K, N], and the largest magnitude of its sums over the first or the last blocks of K."""
    terms = len(b)
    edges = np.linspace(0, terms, min(BLOCKS, terms) + 1).astype(int)
    parts = [times(a[..., start:end], b[start:end]) for start, end in itertools.pairwise(edges)]
    exact = sum(parts[1:], start=parts[0])
    peak, prefix = np.abs(exact), parts[0]
    for part in parts[1:]:
        peak = np.maximum(peak, np.maximum(np.abs(prefix), np.abs(exact - prefix)))
        prefix = prefix + part
    return exact, peak


def _norms(a: Array, b: Array) -> Array:
    """a [..., K] x b [K, N]: the root of the sum of the squares of the terms, of which few digits matter."""
    scale_a, scale_b = _scale(a), _scale(b)
    squares = times(np.square((a / scale_a).astype("float32")), np.square((b / scale_b).astype("float32")))
    return np.sqrt(squares.astype("float64")) * scale_a * scale_b


def _scale(a: Array) -> float:
    """The largest magnitude, to divide by: 1 where all are zero."""
    return float(np.abs(a).max()) or 1.0


def _prefix_peak(a: Array) -> Array:
    """a [K, N] -> [N]: the largest magnitude of the sums of its first or of its last rows."""
    prefix = np.cumsum(a, axis=0)
    return np.maximum(np.abs(prefix), np.abs(prefix[-1] - prefix)).max(axis=0)


def repetition(a: Array, b: Array) -> float:
    """How often a row of a [K, M] and b [K, N] together is repeated, on average over the rows that are not zero.

    Rows are told apart by two random projections, to within TELLING of their size.
    """
    there = a.any(axis=1) & b.any(axis=1)
    if there.sum() < 2:
        return 1.0
    random = np.random.default_rng(0)
    keys = np.zeros(int(there.sum()), complex)
    for part in (a[there], b[there]):
        along = part @ (random.standard_normal((part.shape[1], 2)) @ np.array([1, 1j]))
        keys += along / (np.sqrt(np.mean(np.square(np.abs(along)))) or 1.0)
    _, counts = np.unique(np.round(keys / TELLING), return_counts=True)
    return float(np.square(counts.astype(float)).sum() / counts.sum())
