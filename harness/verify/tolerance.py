"""Tolerances: how far each output element may be from the oracle's, and which programs have no bound.

Imports no framework, and runs in the parent.

Every element has a bound of its own: ELEMENT standard deviations of what rounding may do to it in any order of
summation (impls.rounding). The root mean square of a quantity's errors may be at most RMS of its own standard
deviations. The deviations come from a few runs of the oracle with random roundings, on the very inputs that the
program was given: the real ones and the probe's.

Flushing a denormal to zero is not IEEE arithmetic. It is allowed where it is less than the last bit of a quantity's
largest element.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.study.data import DTYPES, cast, data_for, probe_data
from harness.study.study import Workload
from impls import reference
from impls.interface import Arm, Data, Outputs, Weights
from impls.rounding import Noise, Rounding, Sizes
from impls.sums import scale_of

METHOD = "any order of summation"  # how bounds are made: older records lack it, and had other bounds
CLOSE = 10  # first steps of a training, in which a loss differs from the oracle's by rounding alone
ELEMENT, RMS = 10.0, 5.0  # standard deviations
RUNS = (16, 5)  # of the oracle with random roundings: for a small program, and the minimum
RUN_NUMBERS = 4e6  # numbers in all runs together of a program that is not small
NUMBERS_AT_ONCE = 32e6  # numbers that runs computed at once hold at most, unless one run holds more
FP64_BOUND = 1e-12
BYTES = (60, 80)  # of the oracle in a forward pass: for each of T*G*H numbers of a sequence, and for each of T*O
# And with a loss: for each number of the states, of the outputs computed at once, and of the weights; the second one is
# for each of the runs computed at once.
LOSS_BYTES = {"states": (40, 50), "block": (60, 60), "weights": (20, 20)}
INPUT_BYTES = 12  # for each number of x and of the target
SAMPLED_BYTES = 2 * 2**30  # of the oracle: what would take more is checked on a sample of its sequences
TERMS = {"squared": "the sum of the squared errors", "cross_entropy": "the sum of the cross entropies"}
LEAST_NORMAL = 2.0**-126  # of float32 and bfloat16; smaller numbers are denormals
LARGEST = {"fp64": float(np.finfo(np.float64).max), "bf16": (2 - 2.0**-7) * 2.0**127}
LARGEST_FP32 = float(np.finfo(np.float32).max)

Array = np.ndarray


class Bound(NamedTuple):
    """How far an output may be from the truth: each element, and all elements in root mean square.

    `rms_size` and `largest` are those of the truth, or of the bound where the truth is zero. Errors are reported
    relative to them.
    """

    true: Array
    element: Array
    rms: float
    rms_size: float
    largest: float

    @property
    def relative(self) -> tuple[float, float]:
        """Return the bounds of the root mean square and of the worst element, relative to the truth's."""
        return self.rms / (self.rms_size or 1.0), float(self.element.max()) / (self.largest or 1.0)

    @property
    def vacuous(self) -> bool:
        """Return whether zeros would pass for a truth that is not zero, or anything would pass."""
        return not np.isfinite(self.rms) or (self.rms >= self.rms_size and bool(self.true.any()))


Expected = dict[str, Bound]  # quantity -> bound


def program_data(data: Data, precision: str, form: str, moment: str) -> Data:
    """Return the data that a program of one of the oracle's forms is called with, in a precision, as a backend does."""
    arm = Arm("given" if form == "given" else "", "none" if form == "none" else "")
    data = cast(data_for(arm, data), DTYPES[precision])
    data = probe_data(data) if moment == "before" else data
    return _round_to_bfloat16(data) if precision == "bf16" else data


def _round_to_bfloat16(data: Data) -> Data:
    """Round the data to bfloat16 numbers as a backend does; the arrays stay float32."""
    w, x, target = data
    target = reference.in_bfloat16(target) if target.dtype.kind == "f" else target
    return Data(Weights(*map(reference.in_bfloat16, w)), reference.in_bfloat16(x), target)


def reference_with_deviations(
    data: Data, workload: Workload, pass_: str, form: str, rounding: Rounding
) -> tuple[Outputs, Outputs]:
    """Return the oracle's outputs, and the standard deviation that rounding alone may give each element.

    `data` is float64, and may be a part of the workload's. A deviation is that of the runs with random roundings, or
    `_separable_approximation` of it where that is larger, because few runs may miss an element.
    """
    arguments = (workload.cell, pass_, form)
    names = reference.output_names(pass_, form)
    steps, batch, _ = data.x.shape
    runs, at_once = noise_runs(workload, steps, batch, names)
    true: dict[str, list[Array]] = {}  # of each quantity the blocks, of which only y has more than one
    variances: dict[str, list[Array]] = {name: [] for name in names}  # of the errors relative to the largest
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, runs, at_once):
            sizes = Sizes(rounding)
            noise = Noise(first, sizes, min(at_once, runs - first))
            exact = reference.quantities(data, *arguments, sizes, workload.loss)
            noisy = reference.quantities(noise.data(data), *arguments, noise, workload.loss)
            true = {name: [] for name in names}
            for (name, array), (_, with_noise) in zip(exact, noisy, strict=True):
                if name in true:
                    axis = 1 if name == "y" else 0
                    error = (with_noise - np.expand_dims(array, axis)) / scale_of(array)  # so that no square overflows
                    true[name].append(np.asarray(array))
                    _add_at(variances[name], len(true[name]) - 1, np.square(error).sum(axis) / runs)
    outputs = {name: reference.joined(blocks) for name, blocks in true.items()}
    deviations = {}
    for name, blocks in variances.items():
        scaled = [scale_of(array) * np.sqrt(variance) for array, variance in zip(true[name], blocks, strict=True)]
        deviations[name] = _smoothed(reference.joined(scaled), scale_of(outputs[name]))
    return outputs, deviations


class Numbers(NamedTuple):
    """How many numbers the oracle computes: gates of all states, outputs, outputs of one block, and each weight's."""

    states: int
    outputs: int
    block: int
    weights: dict[str, int]


def numbers_of(workload: Workload, steps: int, batch: int) -> Numbers:
    """Return how many numbers the oracle computes for some steps and sequences of a workload."""
    sizes = {name: math.prod(workload.shapes[name]) for name in Weights._fields}
    states = steps * batch * workload.layers * workload.shapes["w_rec"][-1]
    block = min(steps, reference.block_steps(batch, workload.O)) * batch * workload.O
    return Numbers(states, steps * batch * workload.O, block, sizes)


def noise_runs(workload: Workload, steps: int, batch: int, names: Sequence[str]) -> tuple[int, int]:
    """Return how many runs of the oracle have random roundings, and how many of them are computed at once.

    `names`: those of the program's outputs.
    """
    numbers = numbers_of(workload, steps, batch)
    sizes = {"y": numbers.outputs, "loss": 1} | {f"d_{name}": size for name, size in numbers.weights.items()}
    all_numbers = numbers.states + workload.layers * numbers.outputs + sum(sizes[name] for name in names)
    runs = int(np.clip(RUN_NUMBERS / all_numbers, *RUNS[::-1]))
    numbers_of_run = numbers.states + numbers.block + sum(numbers.weights.values())
    return runs, int(np.clip(NUMBERS_AT_ONCE / numbers_of_run, 1, runs))


def _add_at(arrays: list[Array], place: int, array: Array) -> None:
    """Add an array to the one at a place of a list, or append it as the first of its place."""
    if place < len(arrays):
        arrays[place] = arrays[place] + array
    else:
        arrays.append(array)


def _smoothed(deviation: Array, scale: float) -> Array:
    """Return an array of deviations, none of them smaller than its separable approximation."""
    squares = np.square(deviation / scale)
    return scale * np.sqrt(np.maximum(squares, _separable_approximation(squares)))


def oracle_memory_bytes(workload: Workload, pass_: str) -> float:
    """Return the memory that the oracle and its bounds take for the sequences that are checked.

    It is fitted on measurements of a few sizes. With a loss, the outputs are there in blocks only.
    """
    inputs = INPUT_BYTES * sum(math.prod(workload.shapes[name]) for name in ("x", "target"))
    if pass_ == "forward":
        return inputs + checked_sequences(workload, pass_) * _bytes_per_sequence(workload)
    numbers = numbers_of(workload, workload.T, workload.B)
    at_once = noise_runs(workload, workload.T, workload.B, reference.output_names(pass_, "projected"))[1]
    sizes = {"states": numbers.states, "block": numbers.block, "weights": sum(numbers.weights.values())}
    return float(inputs + sum(size * (LOSS_BYTES[of][0] + LOSS_BYTES[of][1] * at_once) for of, size in sizes.items()))


def checked_sequences(workload: Workload, pass_: str) -> int:
    """Return how many of a batch's sequences are checked: of a large forward pass only as many as SAMPLED_BYTES hold.

    The sequences of a forward pass do not depend on each other. A gradient is a sum over all of them.
    """
    if pass_ != "forward":
        return workload.B
    return min(workload.B, max(1, int(SAMPLED_BYTES // _bytes_per_sequence(workload))))


def _bytes_per_sequence(workload: Workload) -> float:
    """Return the memory that the oracle and its bounds take for one sequence of a forward pass."""
    bytes_per_state, bytes_per_output = BYTES
    width = workload.shapes["w_rec"][-1]
    return float(workload.layers * workload.T * (width * bytes_per_state + workload.O * bytes_per_output))


def _separable_approximation(squares: Array) -> Array:
    """Return an array of squared errors as a product of one factor an axis.

    The factors are the array's means along its axes over their common mean, and the product is scaled to that mean. A
    vector becomes its mean where it is not zero.
    """
    mean = squares.mean()
    if squares.ndim < 2 or not mean > 0:
        return np.where(squares > 0, mean, 0.0)
    product = np.full((1,) * squares.ndim, mean)
    for axis in range(squares.ndim):
        other_axes = tuple(other for other in range(squares.ndim) if other != axis)
        product = product * (squares.mean(axis=other_axes, keepdims=True) / mean)
    return product


def bound_of(true: Array, deviation: Array, lower_bound: float = 0.0) -> Bound:
    """Return the bounds of an output from its standard deviations.

    `lower_bound`: the smallest bound, relative to the truth's largest element and to its root mean square. A denormal
    may be flushed where it is less than the last bit of the largest element.
    """
    largest, size = float(np.abs(true).max()), root_mean_square(true)
    flush_error = LEAST_NORMAL if largest * 2.0**-24 >= LEAST_NORMAL else 0.0
    element = np.maximum(ELEMENT * deviation, max(lower_bound * largest, flush_error))
    rms = max(RMS * root_mean_square(deviation), lower_bound * size, flush_error)
    return Bound(true, element, rms, size or rms, largest or float(element.max()))


def root_mean_square(a: Array) -> float:
    """Return the root mean square, computed on elements over the largest so that no square under- or overflows."""
    largest = float(np.abs(a).max())
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.sqrt(np.mean(np.square(a / largest))))


def overflow_reason(data: Data, workload: Workload, pass_: str, form: str, precision: str) -> str | None:
    """Return what overflows while a program computes in a precision, as the end of a sentence, or None.

    `data` is float64. Partial sums count too, where they may overflow in some order of summation: their magnitude is
    at most the product of the norms of the two factors (Cauchy-Schwarz).
    """
    largest = LARGEST.get(precision, LARGEST_FP32)
    total, steps = 0.0, Counter[str]()  # of the loss's terms, and of each quantity's blocks so far
    with np.errstate(over="ignore", invalid="ignore"):
        for name, array in reference.quantities(data, workload.cell, pass_, form, loss=workload.loss):
            total += float(array.sum()) if name == "terms" else 0.0
            size = np.asarray(total) if name == "terms" else np.abs(array)
            if not (np.max(size) <= largest):
                label = TERMS[workload.loss] if name == "terms" else name
                return _overflow_message(label, size, largest, precision, steps[name], len(data.x))
            steps[name] += len(array) if array.ndim == 3 else 0
            if not (peak := _partial_sum_bound(name, array, data, form)) <= largest:
                range_end = f"{precision} ends at {largest:.2g}"
                return (
                    f"the products of {name} with weights may reach {peak:.1e} in some order of summation; {range_end}"
                )
    return None


def _overflow_message(label: str, size: Array, largest: float, precision: str, first: int, steps: int) -> str:
    """Return at which step a quantity overflows, and how far.

    `first`: the number of steps before the first one of `size`. A loss overflows when the sum of its terms does.
    """
    step, peak = "", float(np.nanmax(size)) if size.ndim else float(size)
    if size.ndim == 3:
        index = int(np.argmax(~(size <= largest).all(axis=(1, 2))))
        step, peak = f" at step {first + index + 1} of {steps}", float(np.max(size[index]))
    extent = "beyond what fp64 holds" if not np.isfinite(peak) else f"{peak:.1e}, which fp64 holds"
    return f"{label} overflows in {precision}{step}: it reaches {extent}; {precision} ends at {largest:.2g}"


def _partial_sum_bound(name: str, array: Array, data: Data, form: str) -> float:
    """Return an upper bound on the partial sums of a quantity's products with weights; 0 where it has none."""
    w = data.weights
    output_weights = [] if form == "none" else [w.w_out]
    recurrent_weights = [] if form == "given" else [w.w_rec]
    factors = {  # of several layers together: those of one are no larger
        "x": [np.swapaxes(w.w_in, -1, -2)],
        "h": [np.swapaxes(matrix, -1, -2) for matrix in recurrent_weights + output_weights],
        "d_y": output_weights,
        "d_u": recurrent_weights,
    }
    if name not in factors:
        return 0.0
    row_norm = float(np.linalg.norm(array, axis=-1).max())
    return max((row_norm * float(np.linalg.norm(factor, axis=-1).max()) for factor in factors[name]), default=0.0)
