"""How far outputs may be from the oracle's: bounds of every element, and what has none. Framework-free, in the parent.

Every element has a bound of its own: ELEMENT standard deviations of what rounding may do to it in any order of
summation (impls.rounding), and the root mean square of a quantity's errors is at most RMS of its own. The deviations
are those of a few runs of the oracle with random roundings, on the very inputs that the program was given: the real
ones and the probe's.

Flushing a denormal to zero is not IEEE arithmetic: it is allowed where it is less than the last bit of a quantity's
largest element.
"""

from typing import Any, NamedTuple

import numpy as np

from harness.study.data import DTYPES, cast, data_for, probe
from harness.study.study import Workload
from impls import reference
from impls.interface import Arm, Data, Outputs, Weights
from impls.rounding import Noise, Rounding, Sizes

METHOD = "any order of summation"  # how bounds are made: older records have none, and other bounds
CLOSE = 10  # first steps of a training, in which a loss differs from the oracle's by rounding alone
ELEMENT, RMS = 10.0, 5.0  # standard deviations
RUNS = (16, 5)  # of the oracle with random roundings: of a small program, and at least
RUN_NUMBERS = 4e6  # numbers of all runs of a program that is not small
FP64_BOUND = 1e-12
BYTES = {"forward": (60, 80), "train": (150, 80)}  # of the oracle and its bounds, see memory_bytes
LEAST_NORMAL = 2.0**-126  # of float32 and bfloat16; below it are the denormals
LARGEST = {"fp64": float(np.finfo(np.float64).max), "bf16": (2 - 2.0**-7) * 2.0**127}
LARGEST_FP32 = float(np.finfo(np.float32).max)

Array = np.ndarray


class Bound(NamedTuple):
    """How far an output may be from the truth: each element, and all in root mean square.

    `rms_size` and `largest` are of the truth, or of the bound where the truth is zero: what errors are told in.
    """

    true: Array
    element: Array
    rms: float
    rms_size: float
    largest: float

    @property
    def relative(self) -> tuple[float, float]:
        """The bounds of the root mean square and of the worst element, in parts of the truth's."""
        return self.rms / (self.rms_size or 1.0), float(self.element.max()) / (self.largest or 1.0)

    @property
    def vacuous(self) -> bool:
        """Whether zeros would pass for outputs that are not zero, or everything would."""
        return not np.isfinite(self.rms) or (self.rms >= self.rms_size and bool(self.true.any()))


Expected = dict[str, Bound]  # quantity -> bound


def program_data(data: Data, precision: str, form: str, moment: str) -> Data:
    """What a program of one of the oracle's forms is called with, as a backend puts it in a precision."""
    arm = Arm("given" if form == "given" else "", "none" if form == "none" else "")
    data = cast(data_for(arm, data), DTYPES[precision])
    data = probe(data) if moment == "before" else data
    return _in_bfloat16(data) if precision == "bf16" else data


def _in_bfloat16(data: Data) -> Data:
    """As a backend puts it: bfloat16 numbers, here as float32."""
    w, x, target = data
    return Data(Weights(*map(reference.in_bfloat16, w)), *map(reference.in_bfloat16, (x, target)))


def reference_with_deviations(
    data: Data, cell: str, pass_: str, form: str, rounding: Rounding
) -> tuple[Outputs, Outputs]:
    """The oracle's outputs, and of each element the standard deviation that rounding alone may give it.

    `data` is float64. A deviation is that of the runs with random roundings, or, where it is larger, the one that the
    means along the axes of the array make, as if it were a product of one factor an axis: few runs may miss an element.
    """
    sizes = Sizes(rounding)
    with np.errstate(over="ignore", invalid="ignore"):
        true = reference.run(data, cell, pass_, form, sizes)
        steps, batch, _ = data.x.shape
        numbers = steps * batch * data.weights.w_rec.shape[1] + data.target.size + sum(a.size for a in true.values())
        runs = int(np.clip(RUN_NUMBERS / numbers, RUNS[1], RUNS[0]))
        together = int(np.clip(RUN_NUMBERS / numbers, 1, runs))
        squares = {name: np.zeros(array.shape) for name, array in true.items()}
        scales = {name: float(np.abs(array).max()) or 1.0 for name, array in true.items()}
        for first in range(0, runs, together):
            noise = Noise(first, sizes, min(together, runs - first))
            for name, array in reference.run(noise.data(data), cell, pass_, form, noise).items():
                axis = 1 if name == "y" else 0
                error = (array - np.expand_dims(true[name], axis)) / scales[name]  # so that no square overflows
                squares[name] += np.square(error).sum(axis) / runs
    return true, {n: scales[n] * np.sqrt(np.maximum(array, _separable(array))) for n, array in squares.items()}


def memory_bytes(workload: Workload, pass_: str) -> float:
    """What the oracle and its bounds take, by what was measured of a few sizes: of T*B*G*H and of T*B*O numbers."""
    bytes_a_state, bytes_an_output = BYTES[pass_]
    rows, wide = workload.T * workload.B, workload.shapes["w_rec"][1]
    return float(rows * (wide * bytes_a_state + workload.O * bytes_an_output))


def _separable(squares: Array) -> Array:
    """The product of an array's means along each of its axes, over their common mean; of a vector the mean where it is
    not zero.
    """
    mean = squares.mean()
    if squares.ndim < 2 or not mean > 0:
        return np.where(squares > 0, mean, 0.0)
    product = np.full((1,) * squares.ndim, mean)
    for axis in range(squares.ndim):
        rest = tuple(number for number in range(squares.ndim) if number != axis)
        product = product * (squares.mean(axis=rest, keepdims=True) / mean)
    return product


def bound_of(true: Array, deviation: Array, floor: float = 0.0) -> Bound:
    """The bounds of an output from its deviations; `floor`: their least, in parts of the truth's largest element.

    A denormal may be flushed where it is less than the last bit of the largest element.
    """
    largest, size = float(np.abs(true).max()), root_mean_square(true)
    flushed = LEAST_NORMAL if largest * 2.0**-24 >= LEAST_NORMAL else 0.0
    element = np.maximum(ELEMENT * deviation, max(floor * largest, flushed))
    rms = max(RMS * root_mean_square(deviation), floor * size, flushed)
    return Bound(true, element, rms, size or rms, largest or float(element.max()))


def root_mean_square(a: Array) -> float:
    """Root mean square, of elements over the largest, so that no square under- or overflows."""
    largest = float(np.abs(a).max())
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.sqrt(np.mean(np.square(a / largest))))


def overflow(data: Data, cell: str, pass_: str, form: str, precision: str) -> str | None:
    """What overflows on a program's way in a precision, in a sentence's end; None where nothing does.

    `data` is float64. Also where only partial sums may overflow, in some order of summation: their magnitude is at most
    the product of the norms of what is multiplied (Cauchy-Schwarz).
    """
    largest = LARGEST.get(precision, LARGEST_FP32)
    with np.errstate(over="ignore", invalid="ignore"):
        for name, array in reference.quantities(data, cell, pass_, form):
            size = np.square(array).sum() if name == "error" else np.abs(array)
            if not (np.max(size) <= largest):
                return _overflowing(name, size, largest, precision)
            if not (sums := _partial_sums(name, array, data, form)) <= largest:
                most = f"{precision} ends at {largest:.2g}"
                return f"the products of {name} with weights may reach {sums:.1e} in some order of summation; {most}"
    return None


def _overflowing(name: str, size: Any, largest: float, precision: str) -> str:
    """At which step, and how far. An error overflows when the sum of its squares, of which the loss is made, does."""
    what = "the sum of the squared errors" if name == "error" else name
    step, peak = "", float(np.nanmax(size)) if np.ndim(size) else float(size)
    if np.ndim(size) == 3:
        at = int(np.argmax(~(size <= largest).all(axis=(1, 2))))
        step, peak = f" at step {at + 1} of {len(size)}", float(np.max(size[at]))
    beyond = "beyond what fp64 holds" if not np.isfinite(peak) else f"{peak:.1e}, which fp64 holds"
    return f"{what} overflows in {precision}{step}: it reaches {beyond}; {precision} ends at {largest:.2g}"


def _partial_sums(name: str, array: Array, data: Data, form: str) -> float:
    """The most that a partial sum of a quantity's products with weights can be; 0 where it has none."""
    w = data.weights
    projected = [] if form == "none" else [w.w_out]
    recurrent = [] if form == "given" else [w.w_rec]
    factors = {"x": [w.w_in.T], "h": [array.T for array in recurrent + projected], "d_y": projected, "d_u": recurrent}
    if name not in factors:
        return 0.0
    rows = float(np.linalg.norm(array, axis=-1).max())
    return max((rows * float(np.linalg.norm(factor, axis=-1).max()) for factor in factors[name]), default=0.0)
