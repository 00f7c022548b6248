"""The output check: whether the arrays that a worker saved are the oracle's, but for rounding. Runs in the parent.

Every element has a bound of its own: ELEMENT standard deviations of what rounding may do to it in any order of
summation (impls.rounding), and the root mean square of a quantity's errors is at most RMS of its own. The deviations
are those of a few runs of the oracle with random roundings, on the very inputs that the program was given: the real
ones and the probe's. Two gates come of it:

(a) same function: in fp64 a bound is no smaller than FP64_BOUND of the quantity's largest element, scaled by T and H;
(b) same to rounding: in fp32, tf32 and bf16 the bounds are those of the precision. What is as shipped may be TF32
    where a GPU has it, and is held to that.

Flushing a denormal to zero is not IEEE arithmetic: it is allowed where it is less than the last bit of a quantity's
largest element, and named where it is more.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from harness import weights
from harness.measure import DTYPES, cast, data_for, probe
from harness.study import Workload
from impls import reference
from impls.interface import Arm, Data, Outputs, Weights
from impls.rounding import ROUNDINGS, Noise, Rounding, Sizes

METHOD = "any order of summation"  # how bounds are made: older records have none, and other bounds
ELEMENT, RMS = 10.0, 5.0  # standard deviations
RUNS = (16, 5)  # of the oracle with random roundings: of a small program, and at least
RUN_NUMBERS = 4e6  # numbers of all runs of a program that is not small
FP64_BOUND = 1e-12
BYTES = {"forward": (60, 80), "train": (150, 80)}  # of the oracle and its bounds, see memory_bytes
LEAST_NORMAL = 2.0**-126  # of float32 and bfloat16; below it are the denormals
LARGEST = {"fp64": float(np.finfo(np.float64).max), "bf16": (2 - 2.0**-7) * 2.0**127}
LARGEST_FP32 = float(np.finfo(np.float32).max)
BFLOAT16 = 1 << 16  # float32 numbers from one of bfloat16's to the next
FLUSHED = "it flushes denormals, numbers below 1.2e-38, to zero, which IEEE fp32 keeps"
DENORMALS = "there are denormals, numbers below 1.2e-38, on its way, which some programs flush to zero"
VACUOUS = (
    "rounding alone may change these outputs by as much as they are: nothing can be verified, and nothing compared"
)

Array = np.ndarray
Bounds = dict[str, tuple[float, float]]
Found = dict[str, list[Any]]  # quantity -> [rms, worst, bitwise equal to batched, ULP to batched]


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


class Excess(NamedTuple):
    """Errors in parts of their bounds: root mean square, and of the worst element, which lies at `place`."""

    rms: float
    element: float
    place: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        return holds((self.rms, self.element), (1.0, 1.0))


NOTHING_HOLDS = Excess(float("inf"), float("inf"))


class Judge:
    """Checks outputs of a study's workloads, whose weights and inputs lie under `folder`.

    `bound`: the precision whose bounds all outputs are held to, whatever they were computed in; None: their own.
    """

    def __init__(self, folder: Path, bound: str | None = None) -> None:
        self.folder, self.bound = folder, bound
        self.expected = cache(self._expected)

    def judge(self, saved: Path, workload: Workload, steps: int, pass_: str, precision: str) -> dict[str, Any]:
        """What the gates say of a block's saved outputs.

        {"bounds": {form: {quantity: (rms, worst)}}, "arms": {name: {"status", "reason", "quantities"}}}, where the
        form is one of the oracle's. The status is ok when both moments of every quantity hold, wrong when one does
        not, and refused when there is no bound that could fail. Errors and bounds are relative, of the real inputs.
        """
        arms = _by_arm(saved)
        judged: dict[str, Any] = {"bounds": {}, "arms": {}}
        for name, moments in arms.items():
            recurrence, _, projection = name.partition("_")
            form = form_of(name)
            place = (workload, steps, pass_, precision, form)
            expected = {moment: self.expected(*place, moment) for moment in moments}
            judged["bounds"][form] = {quantity: bound.relative for quantity, bound in expected["after"].items()}
            base = arms.get(f"{recurrence}_batched", {}).get("after") if projection != "none" else None
            found = _judged(moments, expected, base, BFLOAT16 if precision == "bf16" else 1)
            if found["status"] == "wrong" and precision != "fp64":
                found["reason"] += self._flushing(place, moments, expected)
            judged["arms"][name] = found
        return judged

    def _data(self, workload: Workload, steps: int, precision: str, form: str, moment: str) -> Data:
        """What a program of a form is given, in float32 or float64, rounded as the backend puts it."""
        data = weights.load(self.folder, workload)
        data = data._replace(x=data.x[:steps], target=data.target[:steps])
        return given(data, precision, form, moment)

    def _expected(self, workload: Workload, steps: int, pass_: str, precision: str, form: str, moment: str) -> Expected:
        data = cast(self._data(workload, steps, precision, form, moment), "float64")
        held_to = self.bound or precision
        true, deviations = reference_with_deviations(data, workload.cell, pass_, form, ROUNDINGS[held_to])
        floor = FP64_BOUND * max(1.0, steps * workload.H**0.5 / 200) if held_to == "fp64" else 0.0
        return {name: bound_of(true[name], deviations[name], floor) for name in true}

    def _flushing(self, place: tuple[Any, ...], moments: dict[str, Outputs], expected: dict[str, Expected]) -> str:
        """Whether wrong outputs are those of a program that flushes denormals, as the end of a sentence; or nothing."""
        workload, steps, pass_, precision, form = place
        flushed, denormals = {}, False
        for moment in moments:
            data = cast(self._data(workload, steps, precision, form, moment), "float64")
            how = Flushing()
            true = reference.run(data, workload.cell, pass_, form, how)
            denormals |= how.flushed
            flushed[moment] = {name: bound._replace(true=true[name]) for name, bound in expected[moment].items()}
        if not denormals:
            return ""
        alike = _judged(moments, flushed, None, 1)["status"] == "ok"
        return f"; {FLUSHED if alike else DENORMALS}"


class Flushing(reference.Exact):
    """The oracle's operations on a processor that takes and gives zero for every denormal; `flushed` says whether any
    was met.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flushed = False

    def weights(self, w: Weights) -> Weights:
        return Weights(*map(self.moved, w))

    def product(self, a: Array, b: Array) -> Array:
        return self.moved(super().product(self.moved(a), b))

    def outer(self, a: Array, b: Array) -> Array:
        return self.moved(super().outer(self.moved(a), self.moved(b)))

    def column(self, a: Array) -> Array:
        return self.moved(super().column(self.moved(a)))

    def moved(self, a: Array) -> Array:
        small = (np.abs(a) < LEAST_NORMAL) & (a != 0)
        self.flushed |= bool(small.any())
        return np.where(small, 0.0, a)


def given(data: Data, precision: str, form: str, moment: str) -> Data:
    """What a program of one of the oracle's forms is called with, as a backend puts it in a precision."""
    arm = Arm("given" if form == "given" else "", "none" if form == "none" else "")
    data = cast(data_for(arm, data), DTYPES[precision])
    data = probe(data) if moment == "before" else data
    return _in_bfloat16(data) if precision == "bf16" else data


def _in_bfloat16(data: Data) -> Data:
    """As a backend puts it: bfloat16 numbers, here as float32."""
    w, x, target = data
    return Data(Weights(*map(reference.in_bfloat16, w)), *map(reference.in_bfloat16, (x, target)))


@cache
def form_of(arm: str) -> str:
    """The oracle's form of an arm, by its name: what its outputs and bounds depend on."""
    recurrence, _, projection = arm.partition("_")
    return "given" if recurrence == "given" else "none" if projection == "none" else "projected"


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
    return true, {n: scales[n] * np.sqrt(np.maximum(each, _separable(each))) for n, each in squares.items()}


def memory_bytes(workload: Workload, pass_: str) -> float:
    """What the oracle and its bounds take, by what was measured of a few sizes: of T*B*G*H and of T*B*O numbers."""
    each_state, each_output = BYTES[pass_]
    rows, wide = workload.T * workload.B, workload.shapes["w_rec"][1]
    return float(rows * (wide * each_state + workload.O * each_output))


def _separable(squares: Array) -> Array:
    """The product of an array's means along each of its axes, over their common mean; of a vector the mean where it is
    not zero.
    """
    mean = squares.mean()
    if squares.ndim < 2 or not mean > 0:
        return np.where(squares > 0, mean, 0.0)
    made = np.full((1,) * squares.ndim, mean)
    for axis in range(squares.ndim):
        others = tuple(other for other in range(squares.ndim) if other != axis)
        made = made * (squares.mean(axis=others, keepdims=True) / mean)
    return made


def bound_of(true: Array, deviation: Array, floor: float = 0.0) -> Bound:
    """The bounds of an output from its deviations; `floor`: their least, in parts of the truth's largest element.

    A denormal may be flushed where it is less than the last bit of the largest element.
    """
    largest, size = float(np.abs(true).max()), _rms(true)
    flushed = LEAST_NORMAL if largest * 2.0**-24 >= LEAST_NORMAL else 0.0
    element = np.maximum(ELEMENT * deviation, max(floor * largest, flushed))
    rms = max(RMS * _rms(deviation), floor * size, flushed)
    return Bound(true, element, rms, size or rms, largest or float(element.max()))


def _rms(a: Array) -> float:
    """Root mean square, of elements over the largest, so that no square under- or overflows."""
    largest = float(np.abs(a).max())
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.sqrt(np.mean(np.square(a / largest))))


def excess(output: Array, bound: Bound) -> Excess:
    """How far an output of the right shape is from the truth, in parts of its bounds; infinite where not finite."""
    if not (np.isfinite(output).all() and np.isfinite(bound.element).all()):
        return NOTHING_HOLDS
    error = np.abs(np.subtract(output, bound.true, dtype=np.float64))
    parts = np.divide(error, bound.element, out=np.where(error > 0, np.inf, 0.0), where=bound.element > 0)
    place = np.unravel_index(int(parts.argmax()), parts.shape)
    rms = _rms(error)
    return Excess(
        rms / bound.rms if bound.rms else (np.inf if rms else 0.0), float(parts[place]), tuple(map(int, place))
    )


def holds(found: Iterable[Any], bound: Iterable[float]) -> bool:
    """Whether errors (rms, worst, ...) are within the bounds (rms, worst); NaN and infinite bounds hold nothing."""
    return all(bool(np.isfinite(most) and error <= most) for error, most in zip(found, bound, strict=False))


def _by_arm(saved: Path) -> dict[str, dict[str, Outputs]]:
    """Arm -> moment -> quantity -> array."""
    arms: dict[str, dict[str, Outputs]] = {}
    for key, array in load_file(saved).items():
        name, moment, quantity = key.split("/")
        arms.setdefault(name, {}).setdefault(moment, {})[quantity] = array
    return arms


def _judged(
    moments: dict[str, Outputs], expected: dict[str, Expected], base: Outputs | None, unit: int
) -> dict[str, Any]:
    """An arm's status, one sentence on what does not hold, and its worst errors over its moments.

    `unit`: ULP of the dtype in one of the precision.
    """
    if _vacuous(expected["after"]):
        return {"status": "refused", "reason": VACUOUS, "quantities": {}}  # none of them was verified
    quantities: Found = {}
    bad: list[str] = []
    for name, real in expected["after"].items():
        found = {moment: _found(outputs.get(name), expected[moment][name]) for moment, outputs in moments.items()}
        bad += [_sentence(name, moment, moments, expected[moment][name], over) for moment, over in _failed(found)]
        worst = [max(over.rms for over in found.values()), max(over.element for over in found.values())]
        relative = [over * most if most else over for over, most in zip(worst, real.relative, strict=True)]
        quantities[name] = [*relative, *_compared(moments["after"].get(name), (base or {}).get(name), unit)]
    return {"status": "wrong" if bad else "ok", "reason": "; ".join(bad), "quantities": quantities}


def _found(output: Array | None, bound: Bound) -> Excess:
    return NOTHING_HOLDS if output is None or output.shape != bound.true.shape else excess(output, bound)


def _failed(found: dict[str, Excess]) -> Iterator[tuple[str, Excess]]:
    """The first moment that does not hold, the real inputs before the probe."""
    return iter([(moment, found[moment]) for moment in sorted(found) if not found[moment].ok][:1])


def _sentence(name: str, moment: str, moments: dict[str, Outputs], bound: Bound, over: Excess) -> str:
    """What is wrong with a quantity: an element with its truth and its bound, or the root mean square of all errors."""
    output, where = moments[moment].get(name), " (on the probe's inputs)" if moment == "before" else ""
    if output is None:
        return f"{name} is missing{where}"
    if output.shape != bound.true.shape:
        return f"{name} has shape {list(output.shape)}, not {list(bound.true.shape)}{where}"
    if not np.isfinite(output).all():
        return f"{name} holds numbers that are not finite{where}"
    if not np.isfinite(bound.element).all():
        return f"{name} has no finite bound{where}"
    if over.element > 1:
        index = f"{list(over.place)}" if over.place else ""
        value, true, most = (float(a[over.place]) for a in (output, bound.true, bound.element))
        return f"{name}{index} is {value:.9g} but should be {true:.9g} ± {most:.2g}{where}"
    return f"{name} is off by {over.rms:.2g} times its bound in root mean square{where}"


def _compared(output: Array | None, base: Array | None, unit: int) -> list[Any]:
    """Whether an output is bitwise the batched arm's, and how many ULP they are apart at most; None without either."""
    if base is None or output is None or output.shape != base.shape:
        return [None, None]
    same = output.tobytes() == base.tobytes()
    return [same, 0 if same else max_ulp(output, base) // unit]


def _vacuous(expected: Expected) -> bool:
    """Whether no bound of y, or of any gradient that is not zero, could fail; or one is not finite."""
    told = [bound for name, bound in expected.items() if name != "loss" and bound.true.any()]
    return any(not np.isfinite(bound.rms) for bound in expected.values()) or (
        bool(told) and all(bound.vacuous for bound in told)
    )


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
    multiplied = {"x": [w.w_in.T], "h": [each.T for each in recurrent + projected], "d_y": projected, "d_u": recurrent}
    if name not in multiplied:
        return 0.0
    rows = float(np.linalg.norm(array, axis=-1).max())
    return max((rows * float(np.linalg.norm(each, axis=-1).max()) for each in multiplied[name]), default=0.0)


def max_ulp(a: Array, b: Array) -> int:
    """Largest number of representable numbers between elements of a and b, of one float dtype."""
    if a.dtype != b.dtype or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1

    sign: Any = {4: np.uint32(1 << 31), 8: np.uint64(1 << 63)}[a.itemsize]

    def ordered(x: Array) -> Array:
        """Float bits as unsigned integers in the order of the numbers."""
        bits = np.ascontiguousarray(x).view(sign.dtype)
        return np.where(bits & sign, ~bits, bits | sign)

    low, high = np.minimum(ordered(a), ordered(b)), np.maximum(ordered(a), ordered(b))
    return int((high - low).max())
