"""Check that the functions of a user's file compute the same, before anything is timed. Runs in the worker.

Every function is called, op by op or, in JAX, under jit. It must return arrays of the same names, shapes and types as
the baseline, the same again at a second call, and leave its inputs alone. harness.verify.agreement says how far the
numbers may be apart.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from harness.errors import UsageError
from harness.records.pair import Differences
from harness.verify import agreement
from harness.verify.agreement import Expected
from harness.worker.pair_file import FLOATS, KINDS, Pair, run_users_code
from impls.functions import Functions, Task, leaves, weights
from impls.interface import Outputs

GRADIENT, WAVES = "gradient of ", " (outputs weighted)"  # in the names of quantities
Dtypes = dict[str, str]  # quantity -> name of its type
Stage = Callable[[str, str], None]


class Checker:
    """The functions of a file, called on its inputs. `exact`: these were cast to float64."""

    def __init__(self, pair: Pair, adapter: Functions, exact: bool, stage: Stage) -> None:
        self.pair, self.adapter, self.exact, self.stage = pair, adapter, exact, stage
        self.inputs = pair.inputs
        self.runs: dict[tuple[str, tuple[int, ...]], Callable[..., Any]] = {}  # by name and what is differentiated
        self.baseline = pair.baseline

    def differences(self) -> tuple[dict[str, Differences], dict[str, Expected]]:
        """Return how far each function is from the baseline, and what was expected. Raises UsageError."""
        self.stage(self.baseline, "called")
        true, dtypes = self.outputs(self.baseline)
        self._require_alike(self.baseline, true, dtypes, true, dtypes)  # of itself: that all numbers are finite
        expected = self._expected(true, dtypes)
        differences = {}
        for name in self.pair.functions:
            self.stage(name, "called")
            outputs, types = (true, dtypes) if name == self.baseline else self.outputs(name)
            self._require_alike(name, outputs, types, true, dtypes)
            self._require_repeated(name, outputs, expected)
            if self.exact:
                self._require_float64(name)
            differences[name] = agreement.compare(outputs, expected)
        return differences, expected

    def outputs(self, name: str, share: float = 0.0, seed: int = 0) -> tuple[Outputs, Dtypes]:
        """Return the outputs of a function and the gradients, by quantity, with their types.

        All that they are computed from is changed by a share of itself: the inputs, and the weights of the outputs.
        """
        inputs = agreement.perturb(self.inputs, share, np.random.default_rng(seed)) if share else self.inputs
        values, dtypes = self._forward(name, inputs)
        if self.pair.gradients:
            floats = {quantity: values[quantity] for quantity, dtype in dtypes.items() if dtype in agreement.ULP}
            if not floats:
                raise self._error(f"{name} returns no floating-point numbers, whose gradients GRADIENTS asks for")
            for are_waves in (False, True):
                scales = [weights(a.shape, are_waves, share, seed).astype(a.dtype) for a in floats.values()]
                gradients = self._gradients(name, inputs, scales, WAVES if are_waves else "")
                values |= gradients
                dtypes |= {quantity: str(array.dtype) for quantity, array in gradients.items()}
        return values, dtypes

    def _forward(self, name: str, inputs: dict[str, np.ndarray]) -> tuple[Outputs, Dtypes]:
        """Return what a function returns, by the places of its arrays. Raises UsageError."""
        arrays = [self.adapter.put(inputs[input_], False) for input_ in self.pair.orders[name]]
        returned = self._call(name, arrays)
        for input_, array in zip(self.pair.orders[name], arrays, strict=True):
            if not np.array_equal(self.adapter.get(array), inputs[input_]):
                raise self._error(f"{name} changes its input {input_} in place")
        values, dtypes = {}, {}
        if returned is None or not leaves(returned):
            raise self._error(f"{name} returns nothing")
        for place, leaf in leaves(returned).items():
            if not self.adapter.is_array(leaf):
                what = "nothing" if leaf is None else f"a {type(leaf).__name__}"
                raise self._error(f"{name} returns {what} as its {place}, and not an array of the framework")
            values[place], dtypes[place] = self.adapter.get(leaf), self.adapter.dtype(leaf)
            if values[place].dtype.kind not in KINDS:
                raise self._error(f"{name} returns {dtypes[place]} as its {place}: only real numbers are compared")
        return values, dtypes

    def _gradients(self, name: str, inputs: dict[str, np.ndarray], scales: list[np.ndarray], suffix: str) -> Outputs:
        """Return the gradients of the sum of a function's outputs, each scaled before, by quantity."""
        arrays = [self.adapter.put(inputs[input_], input_ in self.pair.gradients) for input_ in self.pair.orders[name]]
        extra = [self.adapter.put(scale, False) for scale in scales]
        _, *gradients = self._call(name, arrays, self.pair.differentiated(name), extra)
        names = [f"{GRADIENT}{input_}{suffix}" for input_ in self.pair.gradients]
        return dict(zip(names, map(self.adapter.get, gradients), strict=True))

    def _call(
        self, name: str, arrays: list[Any], differentiated: tuple[int, ...] = (), extra: Sequence[Any] = ()
    ) -> Any:
        """Return what a function returns, or with `differentiated` the gradients. Raises UsageError when it raises."""

        def call() -> Any:
            if (name, differentiated) not in self.runs:
                function, execution = self.pair.functions[name], self.adapter.checked_in
                task = Task(name, function, execution, differentiated, weighted=bool(differentiated))
                self.runs[name, differentiated] = self.adapter.prepare(task, arrays)
            return self.runs[name, differentiated](*arrays, *extra)

        return run_users_code(self.pair.path, f"{'the gradient of ' if differentiated else ''}{name}", call)

    def _error(self, sentence: str) -> UsageError:
        return UsageError(f"{self.pair.path.name}: {sentence}")

    def _expected(self, true: Outputs, dtypes: Dtypes) -> dict[str, Expected]:
        """Return how far outputs may be from the baseline's, from its answers to changed inputs."""
        own = next((str(a.dtype) for a in self.inputs.values() if a.dtype.kind == "f"), FLOATS["fp32"])
        self.stage(self.baseline, "called on changed inputs")
        rounding = self._changes(true, agreement.ULP[own])
        ulps = {name: max(agreement.ULP.get(dtype, 0.0), agreement.ULP[own]) for name, dtype in dtypes.items()}
        numbers = max(array.size for array in (*self.inputs.values(), *true.values()))
        expected = agreement.rounding_bounds(true, rounding, ulps, numbers)
        if own != "float64":
            return expected
        return agreement.widen(expected, true, self._changes(true, agreement.SHAKE))

    def _changes(self, true: Outputs, share: float) -> Outputs:
        """Return by how much the baseline's outputs change when all that it computes from is changed by a share."""

        def changed(seed: int) -> Outputs:
            outputs, _ = self.outputs(self.baseline, share, seed)
            self._require_shapes(self.baseline, outputs, true, "on inputs that are changed by a last digit or so")
            return outputs

        return agreement.deviations(true, map(changed, range(agreement.RUNS)))

    def _require_shapes(self, name: str, outputs: Outputs, others: Outputs, when: str) -> None:
        """Raise UsageError where a function returns arrays of other places or shapes than before."""
        if {quantity: a.shape for quantity, a in outputs.items()} != {q: others[q].shape for q in others}:
            raise self._error(f"{name} returns arrays of other shapes {when}")

    def _require_alike(self, name: str, outputs: Outputs, types: Dtypes, true: Outputs, dtypes: Dtypes) -> None:
        """Raise UsageError unless a function returns arrays of the same places, shapes and types as the baseline."""
        if outputs.keys() != true.keys():
            places = [", ".join(q for q in quantities if GRADIENT not in q) for quantities in (outputs, true)]
            raise self._error(f"{name} returns {places[0]} where {self.baseline} returns {places[1]}")
        for quantity, array in outputs.items():
            kinds = [(list(array.shape), types[quantity]), (list(true[quantity].shape), dtypes[quantity])]
            if kinds[0] != kinds[1]:
                texts = [f"{dtype} {shape}" for shape, dtype in kinds]
                raise self._error(f"{name} returns {texts[0]} as its {quantity} where {self.baseline} has {texts[1]}")
            if not (np.isfinite(array).all() and np.isfinite(true[quantity]).all()):
                culprit = self.baseline if not np.isfinite(true[quantity]).all() else name
                raise self._error(f"{culprit} returns numbers that are not finite in its {quantity}")

    def _require_repeated(self, name: str, outputs: Outputs, expected: dict[str, Expected]) -> None:
        """Raise UsageError unless a second call of a function returns the same, up to rounding."""
        repeated, _ = self._forward(name, self.inputs)
        first = {quantity: outputs[quantity] for quantity in outputs if GRADIENT not in quantity}
        self._require_shapes(name, repeated, first, "at a second call with the same inputs")
        differences = agreement.compare(repeated, {q: Expected(outputs[q], expected[q].bound) for q in repeated})
        if excess := agreement.first_excess(differences.values()):
            raise self._error(
                f"{name} returns something else at a second call with the same inputs: {excess.place} was "
                f"{excess.true:.6g}, and is {excess.value:.6g}"
            )

    def _require_float64(self, name: str) -> None:
        """Raise UsageError where a function, given float64, computes in less.

        Its outputs then ignore a change of an input that float32 cannot hold, though they answer to a larger one. An
        input has float32 numbers, so rounding it to them takes the change away.
        """
        outputs, dtypes = self._forward(name, self.inputs)
        for quantity, dtype in dtypes.items():
            if dtype in agreement.ULP and dtype != "float64":
                raise self._error(f"{name} returns {dtype} as its {quantity} where its inputs are float64")
        for input_, array in self.inputs.items():
            if array.dtype.kind != "f" or self._answers(name, input_, agreement.FINER, outputs):
                continue
            if self._answers(name, input_, agreement.WIDER, outputs):
                raise self._error(f"{name} takes {input_} in less than float64")

    def _answers(self, name: str, input_: str, share: float, outputs: Outputs) -> bool:
        """Return whether any output of a function changes with an input."""
        inputs = agreement.perturb(self.inputs, share, np.random.default_rng(0), input_)
        answers, _ = self._forward(name, inputs)
        return any(not np.array_equal(answers[quantity], array) for quantity, array in outputs.items())


def save_expected(expected: dict[str, Expected], file: Path) -> None:
    """Write the baseline's outputs and their bounds."""
    parts = {f"{part}/{name}": getattr(e, part) for name, e in expected.items() for part in Expected._fields}
    save_file({key: np.ascontiguousarray(array) for key, array in parts.items()}, file)


def load_expected(file: Path) -> dict[str, Expected]:
    """Return what `save_expected` has written."""
    parts = load_file(file)
    names = [key.removeprefix("true/") for key in parts if key.startswith("true/")]
    return {name: Expected(parts[f"true/{name}"], parts[f"bound/{name}"]) for name in names}
