"""The output check: whether the arrays that a worker saved equal the oracle's up to rounding. Runs in the parent.

The bounds of harness.verify.tolerance make two gates:

(a) same function: in fp64 a bound is no smaller than FP64_BOUND of the quantity's largest element, scaled by T and H;
(b) same to rounding: in fp32, tf32 and bf16 the bounds are those of the precision. Outputs of as_shipped may be TF32
    where a GPU has it, and are held to its bounds.

A program that flushes denormals is wrong where the effect exceeds rounding, and the reason names the flushing.

A forward pass that is too large for the oracle is checked on some sequences of its batch. They are drawn after the
program has run, so that no program can know them.
"""

import random
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
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
    checked_sequences,
    program_data,
    reference_with_deviations,
    root_mean_square,
)
from impls import reference
from impls.interface import Data, Outputs, Weights
from impls.rounding import ROUNDINGS

KEPT_BYTES = 2 * 2**30  # of truths and bounds, cached for later blocks
BFLOAT16 = 1 << 16  # float32 numbers from one bfloat16 number to the next
FLUSHED = "it flushes denormals, numbers below 1.2e-38, to zero, which IEEE fp32 keeps"
DENORMALS = "there are denormals, numbers below 1.2e-38, on its way, which some programs flush to zero"
VACUOUS = (
    "rounding alone may change these outputs by as much as they are: nothing can be verified, and nothing compared"
)

Array = np.ndarray
Bounds = dict[str, tuple[float, float]]  # quantity -> bounds of the root mean square error and of the worst


class QuantityErrors(NamedTuple):
    """Errors of one output or gradient, relative to the truth, and its difference from the batched arm's.

    `rms` and `worst` are the root mean square and the largest element's. `is_bitwise_batched` says whether it equals
    the batched arm's bit by bit, and `ulp` is their largest distance in ULP; both are None where there is no such arm.
    """

    rms: float
    worst: float
    is_bitwise_batched: bool | None
    ulp: int | float | None


@dataclass(frozen=True)
class ArmCheck:
    """Result of an arm's output check: ok, wrong or refused, with the reason, and the errors by quantity."""

    status: str
    reason: str
    quantities: dict[str, QuantityErrors]


@dataclass(frozen=True)
class BlockCheck:
    """Result of a block's output check: the bounds of each of the oracle's forms, and each arm's result by name.

    `sequences`: those of the batch that were checked; None for all of them.
    """

    sequences: tuple[int, ...] | None = None
    bounds: dict[str, Bounds] = field(default_factory=dict)
    arms: dict[str, ArmCheck] = field(default_factory=dict)


class Excess(NamedTuple):
    """Errors as multiples of their bounds: in root mean square, and of the worst element, which is at `place`."""

    rms: float
    element: float
    place: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Return whether both errors are within their bounds."""
        return within_bounds((self.rms, self.element), (1.0, 1.0))


NOTHING_HOLDS = Excess(float("inf"), float("inf"))


class OutputCheck:
    """The output check of a study's workloads, whose weights and inputs are stored in `folder`.

    `bound`: the precision whose bounds hold for all outputs, whatever precision computed them. With None, outputs are
    held to the bounds of their own precision.
    """

    def __init__(self, folder: Path, bound: str | None = None) -> None:
        self.folder, self.bound = folder, bound
        self.kept: OrderedDict[tuple[Any, ...], Expected] = OrderedDict()  # least recently used first
        self.lock = threading.Lock()  # blocks of several workers are checked at once

    def expected(self, *key: Any) -> Expected:
        """Return `_expected` of the same arguments; the most recently used results are cached, up to KEPT_BYTES."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        expected = self._expected(*key)
        with self.lock:
            self.kept[key] = expected
            while len(self.kept) > 1 and sum(map(_size_bytes, self.kept.values())) > KEPT_BYTES:
                self.kept.popitem(last=False)
        return expected

    def check(self, saved: Path, workload: Workload, steps: int, pass_: str, precision: str) -> BlockCheck:
        """Apply the gates to a block's saved outputs, a file or a folder of files.

        An arm's status is ok when every quantity holds at both moments, on the probe's inputs and on the real ones. It
        is wrong when one does not, and refused when no bound could fail. Errors and bounds are relative to the truth on
        the real inputs.
        """
        arms, result = _outputs_by_arm(saved), BlockCheck(draw_sequences(workload, pass_))
        for name, whole in arms.items():
            recurrence, _, projection = name.partition("_")
            form = form_of(name)
            key = (workload, steps, pass_, precision, form, result.sequences)
            expected = {moment: self.expected(*key, moment) for moment in whole}
            result.bounds[form] = {quantity: bound.relative for quantity, bound in expected["after"].items()}
            baseline = arms.get(f"{recurrence}_batched", {}).get("after") if projection != "none" else None
            moments = {moment: _select_outputs(whole[moment], workload.B, result.sequences) for moment in whole}
            unit = BFLOAT16 if precision == "bf16" else 1
            differences = _differences(whole["after"], baseline or {}, unit)
            check = _check_arm(moments, expected, differences, result.sequences)
            if check.status == "wrong" and precision != "fp64":
                check = replace(check, reason=check.reason + self._flushing_reason(key, moments, expected))
            result.arms[name] = check
        return result

    def _data(
        self, workload: Workload, steps: int, precision: str, form: str, sequences: tuple[int, ...] | None, moment: str
    ) -> Data:
        """Return the data that a program of a form is given, in float32 or float64, rounded as the backend does.

        Only those of some sequences, where `sequences` names them.
        """
        data = weights.load_data(self.folder, workload)
        data = data._replace(x=data.x[:steps], target=data.target[:steps])
        data = program_data(data, precision, form, moment)
        if sequences is None:
            return data
        return data._replace(x=data.x[:, list(sequences)], target=data.target[:, list(sequences)])

    def _expected(
        self,
        workload: Workload,
        steps: int,
        pass_: str,
        precision: str,
        form: str,
        sequences: tuple[int, ...] | None,
        moment: str,
    ) -> Expected:
        """Return the bound of every quantity of a program."""
        data = cast(self._data(workload, steps, precision, form, sequences, moment), "float64")
        bound_precision = self.bound or precision
        rounding = ROUNDINGS[bound_precision]
        true, deviations = reference_with_deviations(data, workload, pass_, form, rounding)
        lower_bound = FP64_BOUND * max(1.0, steps * workload.H**0.5 / 200) if bound_precision == "fp64" else 0.0
        return {name: bound_of(true[name], deviations[name], lower_bound) for name in true}

    def _flushing_reason(self, key: tuple[Any, ...], moments: dict[str, Outputs], expected: dict[str, Expected]) -> str:
        """Return, as the end of a sentence, whether flushed denormals explain wrong outputs.

        The result is empty when the program meets no denormals.
        """
        workload, steps, pass_, precision, form, sequences = key
        flushed_bounds, has_denormals = {}, False
        for moment in moments:
            data = cast(self._data(workload, steps, precision, form, sequences, moment), "float64")
            ops = FlushToZero()
            true = reference.run(data, workload.cell, pass_, form, ops, workload.loss)
            has_denormals |= ops.has_denormals
            flushed_bounds[moment] = {name: bound._replace(true=true[name]) for name, bound in expected[moment].items()}
        if not has_denormals:
            return ""
        is_match = _check_arm(moments, flushed_bounds, {}).status == "ok"
        return f"; {FLUSHED if is_match else DENORMALS}"


class FlushToZero(reference.Exact):
    """The oracle's operations on a processor that reads and writes zero for every denormal.

    `flushed`: whether any denormal occurred.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_denormals = False

    def weights(self, w: Weights) -> Weights:
        return Weights(*map(self.moved, w))

    def product(self, a: Array, b: Array) -> Array:
        return self.moved(super().product(self.moved(a), b))

    def outer(self, a: Array, b: Array) -> Array:
        return self.moved(super().outer(self.moved(a), self.moved(b)))

    def column(self, a: Array) -> Array:
        return self.moved(super().column(self.moved(a)))

    def row(self, a: Array) -> Array:
        return self.moved(super().row(self.moved(a)))

    def moved(self, a: Array) -> Array:
        small = (np.abs(a) < LEAST_NORMAL) & (a != 0)
        self.has_denormals |= bool(small.any())
        return np.where(small, 0.0, a)


@cache
def form_of(arm: str) -> str:
    """Return the oracle's form of an arm, from its name. The form determines the arm's outputs and bounds."""
    recurrence, _, projection = arm.partition("_")
    return "given" if recurrence == "given" else "none" if projection == "none" else "projected"


def excess(output: Array, bound: Bound) -> Excess:
    """Return the errors of an output as multiples of its bounds; infinite where a number or a bound is not finite.

    The output must have the shape of the truth.
    """
    if not (np.isfinite(output).all() and np.isfinite(bound.element).all()):
        return NOTHING_HOLDS
    error = np.abs(np.subtract(output, bound.true, dtype=np.float64))
    ratios = np.divide(error, bound.element, out=np.where(error > 0, np.inf, 0.0), where=bound.element > 0)
    index = np.unravel_index(int(ratios.argmax()), ratios.shape)
    rms = root_mean_square(error)
    return Excess(
        rms / bound.rms if bound.rms else (np.inf if rms else 0.0), float(ratios[index]), tuple(map(int, index))
    )


def within_bounds(errors: Iterable[Any], bounds: Iterable[float]) -> bool:
    """Return whether errors (rms, worst, ...) are within the bounds (rms, worst); false where one is NaN or a bound is
    infinite.
    """
    return all(bool(np.isfinite(bound) and error <= bound) for error, bound in zip(errors, bounds, strict=False))


def _size_bytes(expected: Expected) -> int:
    return sum(bound.true.nbytes + bound.element.nbytes for bound in expected.values())


def _outputs_by_arm(path: Path) -> dict[str, dict[str, Outputs]]:
    """Return a block's saved outputs as arm -> moment -> quantity -> array."""
    arms: dict[str, dict[str, Outputs]] = {}
    for key, array in load_outputs(path).items():
        name, moment, quantity = key.split("/")
        arms.setdefault(name, {}).setdefault(moment, {})[quantity] = array
    return arms


def load_outputs(path: Path) -> Outputs:
    """Load a block's outputs, arm/moment/quantity -> array, from one file or from all files of a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {key: array for file in files for key, array in load_file(file).items()}


def draw_sequences(workload: Workload, pass_: str) -> tuple[int, ...] | None:
    """Return the sequences of a batch that are checked, drawn at random; None where all of them are."""
    count = checked_sequences(workload, pass_)
    if count == workload.B:
        return None
    return tuple(sorted(random.SystemRandom().sample(range(workload.B), count)))


def _select_outputs(outputs: Outputs, batch: int, sequences: tuple[int, ...] | None) -> Outputs:
    """Return the outputs [T, B, N] of some sequences; whole ones of another shape, and all where there is no sample."""
    if sequences is None:
        return outputs
    return {
        name: output[:, list(sequences)] if output.ndim == 3 and output.shape[1] == batch else output
        for name, output in outputs.items()
    }


def _check_arm(
    moments: dict[str, Outputs],
    expected: dict[str, Expected],
    differences: dict[str, tuple[bool | None, int | None]],
    sequences: tuple[int, ...] | None = None,
) -> ArmCheck:
    """Return an arm's result: one sentence on what does not hold, and its worst errors over its moments.

    `moments`: the outputs on the probe's inputs ("before") and on the real inputs ("after").
    `differences`: those of each quantity from the batched arm's, where there is one.
    `sequences`: the numbers of the outputs' sequences in their batch; None for the whole batch.
    """
    if _is_vacuous(expected["after"]):
        return ArmCheck("refused", VACUOUS, {})  # no quantity was verified
    quantities: dict[str, QuantityErrors] = {}
    reasons: list[str] = []
    for name, bound in expected["after"].items():
        errors = {
            moment: _excess_or_infinity(outputs.get(name), expected[moment][name])
            for moment, outputs in moments.items()
        }
        if failures := [moment for moment in sorted(errors) if not errors[moment].ok]:  # "after" comes first
            moment = failures[0]
            reasons.append(_failure_message(name, moment, moments, expected[moment][name], errors[moment], sequences))
        worst = [max(error.rms for error in errors.values()), max(error.element for error in errors.values())]
        rms, largest = (ratio * limit if limit else ratio for ratio, limit in zip(worst, bound.relative, strict=True))
        quantities[name] = QuantityErrors(rms, largest, *differences.get(name, (None, None)))
    return ArmCheck("wrong" if reasons else "ok", "; ".join(reasons), quantities)


def _excess_or_infinity(output: Array | None, bound: Bound) -> Excess:
    """Return `excess`, or NOTHING_HOLDS where the output is missing or has the wrong shape."""
    return NOTHING_HOLDS if output is None or output.shape != bound.true.shape else excess(output, bound)


def _failure_message(
    name: str,
    moment: str,
    moments: dict[str, Outputs],
    bound: Bound,
    error: Excess,
    sequences: tuple[int, ...] | None,
) -> str:
    """Return what is wrong with a quantity.

    That is an element with its truth and its bound, or the root mean square of all errors.
    """
    output, suffix = moments[moment].get(name), " (on the probe's inputs)" if moment == "before" else ""
    if output is None:
        return f"{name} is missing{suffix}"
    if output.shape != bound.true.shape:
        return f"{name} has shape {list(output.shape)}, not {list(bound.true.shape)}{suffix}"
    if not np.isfinite(output).all():
        return f"{name} holds numbers that are not finite{suffix}"
    if not np.isfinite(bound.element).all():
        return f"{name} has no finite bound{suffix}"
    if error.element > 1:
        place = list(error.place)
        if sequences is not None and len(place) == 3:
            place[1] = sequences[place[1]]
        index = f"{place}" if place else ""
        value, true, limit = (float(a[error.place]) for a in (output, bound.true, bound.element))
        return f"{name}{index} is {value:.9g} but should be {true:.9g} ± {limit:.2g}{suffix}"
    return f"{name} is off by {error.rms:.2g} times its bound in root mean square{suffix}"


def _differences(outputs: Outputs, baseline: Outputs, unit: int) -> dict[str, tuple[bool | None, int | None]]:
    """Return `_compare_with_batched` of each output. `unit`: ULP of the stored dtype in one ULP of the precision."""
    return {name: _compare_with_batched(output, baseline.get(name), unit) for name, output in outputs.items()}


def _compare_with_batched(output: Array | None, baseline: Array | None, unit: int) -> tuple[bool | None, int | None]:
    """Return whether an output is bitwise the batched arm's, and their largest distance in ULP.

    Both are None where either output is missing or their shapes differ.
    """
    if baseline is None or output is None or output.shape != baseline.shape:
        return None, None
    is_identical = output.tobytes() == baseline.tobytes()
    return is_identical, 0 if is_identical else max_ulp(output, baseline) // unit


def _is_vacuous(expected: Expected) -> bool:
    """Return whether the bounds can verify nothing.

    That is so when a bound is not finite, or when no bound of y, of a loss by itself, or of any gradient that is not
    zero, could fail.
    """
    nonzero = [bound for name, bound in expected.items() if (name != "loss" or len(expected) == 1) and bound.true.any()]
    return any(not np.isfinite(bound.rms) for bound in expected.values()) or (
        bool(nonzero) and all(bound.vacuous for bound in nonzero)
    )


def max_ulp(a: Array, b: Array) -> int:
    """Return the largest number of representable numbers between elements of a and b, of one float dtype.

    Returns -1 where the dtypes differ or a number is not finite.
    """
    if a.dtype != b.dtype or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1

    sign: Any = {4: np.uint32(1 << 31), 8: np.uint64(1 << 63)}[a.itemsize]

    def ordered(x: Array) -> Array:
        """Return float bits as unsigned integers in the order of the numbers."""
        bits = np.ascontiguousarray(x).view(sign.dtype)
        return np.where(bits & sign, ~bits, bits | sign)

    low, high = np.minimum(ordered(a), ordered(b)), np.maximum(ordered(a), ordered(b))
    return int((high - low).max())
