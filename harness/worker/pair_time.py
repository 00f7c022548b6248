"""Time the functions of a user's file side by side, as a block's arms are. Runs in the worker.

The rounds and the timed region are those of harness.worker.timing. Before the rounds and after them, every function's
outputs are compared with what a check of the file has written.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.records.pair import CONTROL, Differences
from harness.records.schema import ArmTiming
from harness.verify import agreement
from harness.verify.agreement import Expected
from harness.worker.pair_check import GRADIENT, WAVES
from harness.worker.pair_file import Pair, describe
from harness.worker.timing import BALLAST, Meters, Prepared, RoundLimits, Rounds, first_line, time_calls, timer_ns
from impls import libraries
from impls.evidence import Evidence
from impls.functions import Functions, Task, leaves
from impls.interface import Outputs, Unavailable

NOT_EAGER = "it compiles a part of itself, which then is not eager"
COMPILES = "it traces or compiles a part of itself anew at every call, so that a time would be that of compiling"


@dataclass(frozen=True)
class PairTiming:
    """How functions are timed; see harness.worker.messages.PairTimeRequest."""

    execution: str
    pass_: str
    left_out: list[str]
    rounds: RoundLimits
    seed: int
    calls: int | None
    counted: bool


@dataclass
class PairBlock:
    """The functions of a file in one execution and pass, and their times so far."""

    pair: Pair
    adapter: Functions
    compilations: Callable[[], int]
    spec: PairTiming
    expected: dict[str, Expected]
    meters: Meters
    stage: Callable[[str, str], None]
    arms: dict[str, ArmTiming] = field(default_factory=dict)
    differences: dict[str, Differences] = field(default_factory=dict)
    prepared: dict[str, Prepared] = field(default_factory=dict)
    timer: float = 0.0

    def run(self) -> None:
        """Call every function and the control first, then time them in rounds, then count what a call does.

        A function that fails or returns something else has a status and no times, and the others are timed without it.
        Where the baseline is lost, nothing is timed, because there is nothing to compare with.
        """
        self._make_first_calls()
        self.timer = timer_ns(self.meters.clock)
        if self.pair.baseline not in self.prepared or not self.prepared.keys() - {self.pair.baseline, CONTROL}:
            return
        self.stage("", "rounds")
        try:
            self._run_rounds()
        except Exception as error:  # a user's function that did not raise before
            for timing in self.arms.values():
                if timing.status == "ok":
                    timing.status = "failed"
                    timing.reason = f"while functions were timed one raised {describe(self.pair.path, error)}"
        if self.spec.counted:
            self._count()

    def _run_rounds(self) -> None:
        """Time the functions in rounds, and check their last outputs and their inputs."""
        rounds = Rounds(self.prepared, self.arms, self.adapter.wait, self.meters, self._check)
        calls, count = rounds.plan(self.spec.rounds, self.timer, self.spec.calls)
        rounds.run(calls, count, self.spec.seed, self.compilations)
        self._check_inputs()

    def _make_first_calls(self) -> None:
        """Prepare and call every function, and the baseline a second time as the A/A control, in a random order."""
        rng = random.Random(self.spec.seed)
        names = [name for name in self.pair.functions if name not in self.spec.left_out]
        if self.pair.baseline in names:
            names.append(CONTROL)
        for name in rng.sample(names, len(names)):
            self.stage(name, "first call")
            self._first_call(name, rng.randrange(BALLAST))
        ok = {name for name in self.prepared if self.arms[name].status == "ok"}
        self.prepared = {name: self.prepared[name] for name in names if name in ok}

    def _first_call(self, name: str, ballast_bytes: int) -> None:
        """Prepare a function, call it twice, and check both outputs. A failure is recorded in its timing."""
        timing = self.arms[name] = ArmTiming.without_times()
        source, task = self._source(name), self._task(name)
        compilations = self.compilations()
        try:
            ballast = np.ones(ballast_bytes, np.uint8)
            inputs = [
                self.adapter.put(self.pair.inputs[input_], bool(task.differentiated) and input_ in self.pair.gradients)
                for input_ in self.pair.orders[source]
            ]
            run = self.adapter.prepare(task, inputs)
            timing.first_call_ns, outputs = time_calls(self.meters.clock, self.adapter.wait, run, inputs, 1)
            self._check(name, outputs)
            del outputs
            before = self.compilations()
            _, outputs = time_calls(self.meters.clock, self.adapter.wait, run, inputs, 1)
            self._check(name, outputs)
            if self.compilations() != before:
                self._require_compiled(run, inputs)
            is_eager = self.spec.execution == "eager" and not self.adapter.compiles_in_eager
            if is_eager and self.compilations() != compilations:
                raise Unavailable(NOT_EAGER)  # noqa: TRY301  caught below, as those of the framework
        except Unavailable as error:
            timing.status, timing.reason = "unavailable", str(error)
        except Exception as error:  # whatever a framework or the user's function raises is a record, not a crash
            timing.status, timing.reason = "failed", describe(self.pair.path, error)
        else:
            self.prepared[name] = Prepared(run, inputs, ballast)

    def _require_compiled(self, run: Callable[..., Any], inputs: list[Any]) -> None:
        """Raise Unavailable where a third call compiles too: a time would be that of compiling."""
        before = self.compilations()
        time_calls(self.meters.clock, self.adapter.wait, run, inputs, 1)
        if self.compilations() != before:
            raise Unavailable(COMPILES)

    def _source(self, name: str) -> str:
        """Return the name of the function that a timing is of."""
        return self.pair.baseline if name == CONTROL else name

    def _task(self, name: str) -> Task:
        source = self._source(name)
        differentiated = self.pair.differentiated(source) if self.spec.pass_ == "train" else ()
        return Task(name, self.pair.functions[source], self.spec.execution, differentiated)

    def _check(self, name: str, outputs: Any) -> None:
        """Compare a function's outputs with what is expected; where they differ, mark it as wrong, without times."""
        quantities = self._named(outputs)
        expected = {quantity: self.expected[quantity] for quantity in self._quantities()}
        timing = self.arms[name]
        shapes = {quantity: array.shape for quantity, array in quantities.items()}
        if shapes != {quantity: expectation.true.shape for quantity, expectation in expected.items()}:
            self._mark(
                timing, f"returns other arrays in {self.spec.execution} than when it was checked: {', '.join(shapes)}"
            )
            return
        differences = agreement.compare(quantities, expected)
        earlier = self.differences.get(name, differences)
        self.differences[name] = {
            quantity: max(difference, earlier[quantity], key=lambda entry: entry.share)
            for quantity, difference in differences.items()
        }
        if excess := agreement.first_excess(differences.values()):
            self._mark(timing, f"{self.spec.execution}: {describe_difference(excess)}")

    def _mark(self, timing: ArmTiming, reason: str) -> None:
        if timing.status == "ok":
            timing.status, timing.reason = "wrong", reason

    def _quantities(self) -> list[str]:
        """Return the names of the expected quantities that this pass returns."""
        is_train = self.spec.pass_ == "train"
        return [q for q in self.expected if q.startswith(GRADIENT) == is_train and not q.endswith(WAVES)]

    def _named(self, outputs: Any) -> Outputs:
        """Return a call's outputs by quantity: of a training pass the gradients, of a forward pass all arrays."""
        if self.spec.pass_ == "train":
            _, *gradients = outputs
            arrays = dict(zip([f"{GRADIENT}{name}" for name in self.pair.gradients], gradients, strict=True))
        else:
            arrays = leaves(outputs)
        return {quantity: self.adapter.get(array) for quantity, array in arrays.items()}

    def _check_inputs(self) -> None:
        """Mark as wrong every function whose inputs are no longer what they were."""
        for name, entry in self.prepared.items():
            for input_, array in zip(self.pair.orders[self._source(name)], entry.inputs, strict=True):
                if not np.array_equal(self.adapter.get(array), self.pair.inputs[input_]):
                    self._mark(self.arms[name], f"changes its input {input_} in place")

    def _count(self) -> None:
        """Count what a call of each function does, after all timing."""
        for name, entry in self.prepared.items():
            if name != CONTROL and self.arms[name].status == "ok":
                self.stage(name, "counting")
                self.arms[name].evidence = self._evidence(name, entry)

    def _evidence(self, name: str, entry: Prepared) -> Evidence:
        """Return what a call of a function does, or evidence whose `missing` names the error."""
        try:
            evidence = self.adapter.evidence(self._task(name), entry.run, entry.inputs)
        except Exception as error:  # whatever a framework raises is a reason, not a crash
            return Evidence(missing={"everything": f"{type(error).__name__}: {first_line(error)}"})
        libraries.state(evidence)
        return evidence

    def results(self) -> Iterator[tuple[str, ArmTiming]]:
        """Yield the timings; those of a function that is wrong or failed have no times."""
        for name, timing in self.arms.items():
            is_withheld = timing.status in ("wrong", "failed")
            yield name, timing.withheld(timing.status, timing.reason) if is_withheld else timing


def describe_difference(difference: agreement.Difference) -> str:
    """Return where a function differs from the baseline, and by how much."""
    return (
        f"{difference.place} is {difference.value:.6g} and the baseline's {difference.true:.6g}: they differ by "
        f"{difference.error:.2g}, and may by {difference.bound:.2g}"
    )
