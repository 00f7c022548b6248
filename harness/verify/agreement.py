"""Whether functions compute the same: how far their outputs may be apart when nothing but rounding differs.

Nothing is known of the functions but what they return. So the sensitivity of each output element is measured: the
baseline is called again with every number that it computes from changed at random, by a share that is known.

- By one unit in the last place: what the element changes by is what rounding the inputs may do to it (Monte Carlo
  arithmetic; Parker 1997). An element may be off by ROUNDING times as much, because functions round in every operation,
  and not only their inputs. A sum of n terms one after another rounds n partial sums, each up to n times as large as a
  term, which makes up to the square root of n of it (Higham and Mary 2019). Where an array has more than SHORT numbers,
  sums may be that long, and the factor grows with the square root of their number.
- In float64 also by SHAKE: what the element changes by, divided by that share, is the size of the terms that it is made
  of. An element may also be off by FP64 of that size. Where terms cancel, it is more than the element itself.

Whole numbers and truth values must be equal.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from impls.interface import Outputs

METHOD = "sensitivity to changed inputs"  # how bounds are made
FP64 = 1e-10  # share of the terms that an element is made of, in float64
ROUNDING = 32.0  # standard deviations of what rounding the inputs does
SHORT = 4096  # numbers; a library's sums of so many stay within ROUNDING
RUNS = 5  # with inputs changed by each share
SHAKE = 2.0**-20  # share by which inputs are changed in float64
WIDER = 2.0**-3  # share that any function of an input answers to
FINER = 2.0**-30  # share that a function computed in float64 answers to, and one computed in float32 does not
ULP = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
OF_LARGEST = 0.1  # ULP of the largest element that rounding may do to any element

Array = np.ndarray


class Expected(NamedTuple):
    """The baseline's value of a quantity, and how far each element may be from it."""

    true: Array
    bound: Array


class Difference(NamedTuple):
    """The worst element of a quantity: its place, its value and the baseline's, their difference and its bound.

    `share` is the difference over its bound: above 1 the functions are not the same. It is infinite where one of the
    two is no finite number.
    """

    place: str
    value: float
    true: float
    error: float
    bound: float
    share: float

    @property
    def is_within(self) -> bool:
        """Return whether the whole quantity is within its bounds."""
        return self.share <= 1


def perturb(inputs: Mapping[str, Array], share: float, rng: np.random.Generator, only: str = "") -> dict[str, Array]:
    """Return inputs with every floating-point number changed by a share of itself, up or down at random.

    `only`: the one input that is changed; all of them by default.
    """
    changed = dict(inputs)
    for name, array in inputs.items():
        if array.dtype.kind == "f" and only in ("", name):
            changed[name] = (array * (1 + share * rng.choice((-1.0, 1.0), array.shape))).astype(array.dtype)
    return changed


def deviations(true: Outputs, runs: Iterable[Outputs]) -> Outputs:
    """Return the root mean square, over runs, of the difference of each floating-point element from the truth."""
    squares = {name: np.zeros(array.shape) for name, array in true.items() if array.dtype.kind == "f"}
    count = 0
    for outputs in runs:
        count += 1
        for name, square in squares.items():
            square += np.square(outputs[name].astype("float64") - true[name].astype("float64"))
    return {name: np.sqrt(square / count) for name, square in squares.items()}


def rounding_bounds(
    true: Outputs, changes: Outputs, ulps: Mapping[str, float], numbers: int = 1
) -> dict[str, Expected]:
    """Return what functions may return when they differ by rounding alone.

    `changes`: the deviations when inputs are changed by one ULP. `ulps`: quantity -> ULP of its type. `numbers`: of the
    largest array among inputs and outputs.
    """
    expected, factor = {}, ROUNDING * max(1.0, math.sqrt(numbers / SHORT))
    for name, array in true.items():
        bound = np.zeros(array.shape)
        if name in changes:
            own = ulps[name] * np.abs(array.astype("float64"))
            least = ulps[name] * OF_LARGEST * _largest(array)
            bound = factor * np.sqrt(np.square(changes[name]) + np.square(own) + least**2)
        expected[name] = Expected(array, bound)
    return expected


def widen(expected: Mapping[str, Expected], true: Outputs, changes: Outputs) -> dict[str, Expected]:
    """Return wider bounds for float64, where FP64 of an element's terms is still a difference that no program means.

    `changes`: the deviations when inputs are changed by SHAKE.
    """
    sizes = {name: np.maximum(np.abs(true[name]), change / SHAKE) for name, change in changes.items()}
    return {
        name: Expected(array, bound + FP64 * sizes[name] if name in sizes else bound)
        for name, (array, bound) in expected.items()
    }


def _largest(array: Array) -> float:
    return float(np.abs(array).max()) if array.size else 0.0


def worst(name: str, value: Array, expected: Expected) -> Difference:
    """Return the worst element of a quantity, whose shape is that of the truth."""
    if not value.size:
        return Difference(name, 0.0, 0.0, 0.0, 0.0, 0.0)
    values, true = value.astype("float64"), expected.true.astype("float64")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        errors = np.abs(values - true)
        shares = np.where(errors == 0, 0.0, errors / expected.bound)
    shares = np.where(np.isfinite(shares) & np.isfinite(values) & np.isfinite(true), shares, math.inf)
    index = np.unravel_index(int(np.argmax(shares)), shares.shape)
    place = f"{name}[{', '.join(map(str, index))}]" if index else name
    numbers = (float(array[index]) for array in (values, true, errors, expected.bound, shares))
    return Difference(place, *numbers)


def compare(outputs: Outputs, expected: Mapping[str, Expected]) -> dict[str, Difference]:
    """Return the worst element of every quantity of a function."""
    return {name: worst(name, outputs[name], expectation) for name, expectation in expected.items()}


def first_excess(differences: Iterable[Difference]) -> Difference | None:
    """Return the difference that is furthest beyond its bound, or None where all are within."""
    excesses = [difference for difference in differences if not difference.is_within]
    return max(excesses, key=lambda difference: difference.share, default=None)
