"""The output check: whether the arrays that a worker saved are the oracle's, but for rounding. Runs in the parent.

Two gates come of the bounds of harness.verify.tolerance:

(a) same function: in fp64 a bound is no smaller than FP64_BOUND of the quantity's largest element, scaled by T and H;
(b) same to rounding: in fp32, tf32 and bf16 the bounds are those of the precision. What is as shipped may be TF32
    where a GPU has it, and is held to that.

A program that flushes denormals is wrong where that is more than rounding, and the reason names it.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from harness.study import weights
from harness.study.data import cast
from harness.study.study import Workload
from harness.verify.tolerance import (
    FP64_BOUND,
    LEAST_NORMAL,
    Bound,
    Expected,
    bound_of,
    program_data,
    reference_with_deviations,
    root_mean_square,
)
from impls import reference
from impls.interface import Data, Outputs, Weights
from impls.rounding import ROUNDINGS

KEPT_BYTES = 2 * 2**30  # of truths and bounds, for the blocks to come
BFLOAT16 = 1 << 16  # float32 numbers from one of bfloat16's to the next
FLUSHED = "it flushes denormals, numbers below 1.2e-38, to zero, which IEEE fp32 keeps"
DENORMALS = "there are denormals, numbers below 1.2e-38, on its way, which some programs flush to zero"
VACUOUS = (
    "rounding alone may change these outputs by as much as they are: nothing can be verified, and nothing compared"
)

Array = np.ndarray
Bounds = dict[str, tuple[float, float]]
Found = dict[str, list[Any]]  # quantity -> [rms, worst, bitwise equal to batched, ULP to batched]


class Excess(NamedTuple):
    """Errors in parts of their bounds: root mean square, and of the worst element, which lies at `place`."""

    rms: float
    element: float
    place: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        return holds((self.rms, self.element), (1.0, 1.0))


NOTHING_HOLDS = Excess(float("inf"), float("inf"))


class OutputCheck:
    """Checks outputs of a study's workloads, whose weights and inputs lie under `folder`.

    `bound`: the precision whose bounds all outputs are held to, whatever they were computed in; None: their own.
    """

    def __init__(self, folder: Path, bound: str | None = None) -> None:
        self.folder, self.bound = folder, bound
        self.kept: OrderedDict[tuple[Any, ...], Expected] = OrderedDict()  # the latest last
        self.lock = threading.Lock()  # blocks of several workers are checked at once

    def expected(self, *place: Any) -> Expected:
        """What `_expected` gives for a place; of those asked for last, KEPT_BYTES are kept."""
        with self.lock:
            if place in self.kept:
                self.kept.move_to_end(place)
                return self.kept[place]
        expected = self._expected(*place)
        with self.lock:
            self.kept[place] = expected
            while len(self.kept) > 1 and sum(map(_size_bytes, self.kept.values())) > KEPT_BYTES:
                self.kept.popitem(last=False)
        return expected

    def judge(self, saved: Path, workload: Workload, steps: int, pass_: str, precision: str) -> dict[str, Any]:
        """What the gates say of a block's saved outputs, a file or a folder of them.

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
            verdict = _judged(moments, expected, base, BFLOAT16 if precision == "bf16" else 1)
            if verdict["status"] == "wrong" and precision != "fp64":
                verdict["reason"] += self._flushing(place, moments, expected)
            judged["arms"][name] = verdict
        return judged

    def _data(self, workload: Workload, steps: int, precision: str, form: str, moment: str) -> Data:
        """What a program of a form is given, in float32 or float64, rounded as the backend puts it."""
        data = weights.load(self.folder, workload)
        data = data._replace(x=data.x[:steps], target=data.target[:steps])
        return program_data(data, precision, form, moment)

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


@cache
def form_of(arm: str) -> str:
    """The oracle's form of an arm, by its name: what its outputs and bounds depend on."""
    recurrence, _, projection = arm.partition("_")
    return "given" if recurrence == "given" else "none" if projection == "none" else "projected"


def excess(output: Array, bound: Bound) -> Excess:
    """How far an output of the right shape is from the truth, in parts of its bounds; infinite where not finite."""
    if not (np.isfinite(output).all() and np.isfinite(bound.element).all()):
        return NOTHING_HOLDS
    error = np.abs(np.subtract(output, bound.true, dtype=np.float64))
    parts = np.divide(error, bound.element, out=np.where(error > 0, np.inf, 0.0), where=bound.element > 0)
    place = np.unravel_index(int(parts.argmax()), parts.shape)
    rms = root_mean_square(error)
    return Excess(
        rms / bound.rms if bound.rms else (np.inf if rms else 0.0), float(parts[place]), tuple(map(int, place))
    )


def holds(errors: Iterable[Any], bounds: Iterable[float]) -> bool:
    """Whether errors (rms, worst, ...) are within the bounds (rms, worst); NaN and infinite bounds hold nothing."""
    return all(bool(np.isfinite(bound) and error <= bound) for error, bound in zip(errors, bounds, strict=False))


def _size_bytes(expected: Expected) -> int:
    return sum(bound.true.nbytes + bound.element.nbytes for bound in expected.values())


def _by_arm(saved: Path) -> dict[str, dict[str, Outputs]]:
    """Arm -> moment -> quantity -> array."""
    arms: dict[str, dict[str, Outputs]] = {}
    for key, array in loaded(saved).items():
        name, moment, quantity = key.split("/")
        arms.setdefault(name, {}).setdefault(moment, {})[quantity] = array
    return arms


def loaded(saved: Path) -> Outputs:
    """A block's outputs, arm/moment/quantity -> array: of one file, or of all in a folder."""
    files = sorted(saved.glob("*.safetensors")) if saved.is_dir() else [saved]
    return {key: array for file in files for key, array in load_file(file).items()}


def _judged(
    moments: dict[str, Outputs], expected: dict[str, Expected], base: Outputs | None, unit: int
) -> dict[str, Any]:
    """An arm's status, one sentence on what does not hold, and its worst errors over its moments.

    `unit`: ULP of the dtype in one of the precision.
    """
    if _vacuous(expected["after"]):
        return {"status": "refused", "reason": VACUOUS, "quantities": {}}  # none of them was verified
    quantities: Found = {}
    reasons: list[str] = []
    for name, real in expected["after"].items():
        errors = {moment: _excess(outputs.get(name), expected[moment][name]) for moment, outputs in moments.items()}
        if failed := [moment for moment in sorted(errors) if not errors[moment].ok]:  # "after" comes first
            moment = failed[0]
            reasons.append(_sentence(name, moment, moments, expected[moment][name], errors[moment]))
        worst = [max(error.rms for error in errors.values()), max(error.element for error in errors.values())]
        relative = [ratio * bound if bound else ratio for ratio, bound in zip(worst, real.relative, strict=True)]
        quantities[name] = [*relative, *_compared(moments["after"].get(name), (base or {}).get(name), unit)]
    return {"status": "wrong" if reasons else "ok", "reason": "; ".join(reasons), "quantities": quantities}


def _excess(output: Array | None, bound: Bound) -> Excess:
    return NOTHING_HOLDS if output is None or output.shape != bound.true.shape else excess(output, bound)


def _sentence(name: str, moment: str, moments: dict[str, Outputs], bound: Bound, error: Excess) -> str:
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
    if error.element > 1:
        index = f"{list(error.place)}" if error.place else ""
        value, true, limit = (float(a[error.place]) for a in (output, bound.true, bound.element))
        return f"{name}{index} is {value:.9g} but should be {true:.9g} ± {limit:.2g}{where}"
    return f"{name} is off by {error.rms:.2g} times its bound in root mean square{where}"


def _compared(output: Array | None, base: Array | None, unit: int) -> list[Any]:
    """Whether an output is bitwise the batched arm's, and how many ULP they are apart at most; None without either."""
    if base is None or output is None or output.shape != base.shape:
        return [None, None]
    same = output.tobytes() == base.tobytes()
    return [same, 0 if same else max_ulp(output, base) // unit]


def _vacuous(expected: Expected) -> bool:
    """Whether no bound of y, or of any gradient that is not zero, could fail; or one is not finite."""
    nonzero = [bound for name, bound in expected.items() if name != "loss" and bound.true.any()]
    return any(not np.isfinite(bound.rms) for bound in expected.values()) or (
        bool(nonzero) and all(bound.vacuous for bound in nonzero)
    )


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
