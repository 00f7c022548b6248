"""Timing of one block: the arms' first calls, their outputs, and their alternating rounds.

Runs in the worker. The backend, the clock and the random seed are handed in.
"""

import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.records.schema import ArmTiming
from harness.study.data import data_for, probe_data
from harness.study.parts import BATCHED, PAIR, TWIN
from harness.worker import peak_memory
from impls import libraries
from impls.evidence import Evidence
from impls.interface import NULL_ARM, Arm, Backend, Data, Outputs, Program, Run, Unavailable

NULL = Arm(*NULL_ARM)
NOT_REACHED = ("not_reached", "the time for this process ended before its first call")  # status and reason
ROUNDS = "rounds"  # the stage in which arms are timed
NULL_SAMPLES, NULL_CALLS = 50, 20
TIMER_COSTS = 1000  # a sample lasts at least this many times what reading the clock costs
BALLAST = 1 << 20  # maximum bytes allocated before an arm's arrays, so that their addresses differ between processes


@dataclass(frozen=True)
class RoundLimits:
    """Limits on the rounds of a block.

    The number of rounds is what fits into about `block_s` seconds, but at least `least` and at most `most`.
    """

    least: int
    most: int
    block_s: float


@dataclass(frozen=True)
class TimingSpec:
    """Specification of a block: arms of one workload and pass, and how to time them.

    `rounds`: None if only outputs are wanted, not times.
    `counted`: the arms whose operations in a call are counted as evidence.
    `control`: whether each batched arm is timed a second time, as its A/A control.
    `calls`: calls per sample, the same for every arm; None for as many as the shortest arm needs.
    `hurried`: whether the block's time may end before every arm has been called. The arms without which the others
    answer nothing are then called first.
    `loop`: the recurrence that users would write, whose arms come before all others in a hurried block; "" for any.
    `peaks`: whether the memory of every arm is measured.
    """

    cell: str
    pass_: str
    execution: str
    arms: list[Arm]
    data: Data
    rounds: RoundLimits | None
    seed: int
    seconds: float = math.inf  # no first call starts later than this
    counted: tuple[Arm, ...] = ()
    control: bool = True
    calls: int | None = None
    hurried: bool = False
    loop: str = ""
    overwrites: bool = False  # whether the next call overwrites a call's outputs
    loss: str = "squared"
    layers: int = 1
    peaks: bool = False
    on_gpu: bool = False


@dataclass(frozen=True)
class Meters:
    """Readings taken before and after the timed region.

    `clock` returns nanoseconds; `faults` returns the process's minor page faults so far.
    """

    clock: Callable[[], int]
    faults: Callable[[], int]


# Called with an arm's name, a moment and the arm's outputs. The moment is "before" (on probe inputs) or "after" (on
# real inputs).
Keep = Callable[[str, str, Outputs], None]


@dataclass(frozen=True)
class Prepared:
    """A prepared program that has been called: its callable and its inputs, but not its outputs."""

    run: Callable[..., Any]
    inputs: Sequence[Any]
    ballast: Any = None  # memory that gives the program's arrays other addresses than in another process


@dataclass(frozen=True, kw_only=True)
class PreparedArm(Prepared):
    """A prepared arm; its inputs are x and target."""

    program: Program


@dataclass
class BlockResult:
    """Result of a block, without the outputs. `texts`: arm -> file name -> text of the arm's program."""

    arms: dict[str, ArmTiming]
    timer_ns: float
    texts: dict[str, dict[str, str]]


def time_calls(
    clock: Callable[[], int], wait: Callable[[Any], None], run: Callable[..., Any], inputs: Sequence[Any], calls: int
) -> tuple[int, Any]:
    """Return the nanoseconds of `calls` calls, each waited for, and the last outputs.

    This is the one timed region.
    """
    start = clock()
    for _ in range(calls):
        outputs = run(*inputs)
        wait(outputs)
    return clock() - start, outputs


@dataclass(frozen=True)
class Rounds:
    """Rounds in which prepared programs are timed side by side.

    Samples are added to `timings`, by the programs' names. `keep` is called with the outputs of a program's last
    sample; all others are dropped.
    """

    programs: Mapping[str, Prepared]
    timings: Mapping[str, ArmTiming]
    wait: Callable[[Any], None]
    meters: Meters
    keep: Callable[[str, Any], None]

    def plan(self, limits: RoundLimits, timer: float, calls: int | None) -> tuple[int, int]:
        """Return the calls per sample, the same for every program, and the number of rounds.

        `timer` is what reading the clock costs, in nanoseconds. `calls`: None for what the shortest program needs.
        """
        call_ns = {}
        for name, entry in self.programs.items():
            for _ in range(2):  # the second of two calls is the estimate
                call_ns[name] = max(time_calls(self.meters.clock, self.wait, entry.run, entry.inputs, 1)[0], 1)
        calls = calls or max(1, math.ceil(TIMER_COSTS * timer / min(call_ns.values())))
        round_ns = calls * sum(call_ns.values())
        return calls, int(min(limits.most, max(limits.least, limits.block_s * 1e9 // round_ns)))

    def run(self, calls: int, count: int, seed: int, compilations: Callable[[], int]) -> None:
        """Time every program once per round, in a new random order each round, with garbage collection off.

        Where anything was compiled meanwhile, the timings are refused.
        """
        compilations_before = compilations()
        gc.collect()
        gc.disable()
        try:
            for number, names in enumerate(turns(list(self.programs), count, seed), 1):
                for name in names:
                    self._take_sample(name, calls, last=number == count)
        finally:
            gc.enable()
        if compilations() != compilations_before:
            for timing in self.timings.values():
                if timing.status == "ok":
                    timing.status, timing.reason = "refused", "something was traced or compiled while it was timed"

    def _take_sample(self, name: str, calls: int, last: bool) -> None:
        """Take one sample of a program."""
        entry, timing = self.programs[name], self.timings[name]
        faults_before = self.meters.faults()
        elapsed_ns, outputs = time_calls(self.meters.clock, self.wait, entry.run, entry.inputs, calls)
        timing.faults.append(self.meters.faults() - faults_before)
        timing.samples_ns.append(elapsed_ns)
        timing.calls = calls
        if last:
            self.keep(name, outputs)


def block(
    backend: Backend,
    spec: TimingSpec,
    meters: Meters,
    keep: Keep,
    stage: Callable[[str, str], None],
) -> BlockResult:
    """Run one block.

    `keep` is called with an arm's outputs as soon as they are fetched, so that no arm's outputs stay in memory while
    another arm is timed. `stage` is called with the name of an arm and what is about to happen to it.
    """
    block_run = _BlockRun(backend, spec, meters, keep, stage)
    block_run.make_first_calls()
    timer = timer_ns(meters.clock)
    if spec.rounds and block_run.prepared_arms:
        stage("", ROUNDS)
        block_run.run_rounds(timer)
        stage("", "counting")
    if spec.peaks:
        block_run.measure_peaks()
    return BlockResult(block_run.arms, timer, block_run.record_evidence())


@dataclass
class _BlockRun:
    """A block in progress: its specification and collaborators, and its results so far."""

    backend: Backend
    spec: TimingSpec
    meters: Meters
    keep: Keep
    stage: Callable[[str, str], None]
    arms: dict[str, ArmTiming] = field(default_factory=dict)
    prepared_arms: dict[str, PreparedArm] = field(default_factory=dict)

    def make_first_calls(self) -> None:
        """Prepare and call every arm and every A/A control, in a random order.

        Each process has an order of its own, so the arms' arrays have other addresses in every process. In a hurried
        block the loop that users would write comes first, and in it the pair of the question (PAIR).
        """
        start_ns, arms = self.meters.clock(), self._arms_by_name()
        self.arms = {name: ArmTiming.without_times() for name in arms if not name.endswith(TWIN)}
        rng = random.Random(self.spec.seed)
        order = rng.sample(list(arms), len(arms))
        if self.spec.hurried:
            order.sort(key=lambda name: (*self._comes_later(arms[name]), name.endswith(TWIN)))
        for name in order:
            if (self.meters.clock() - start_ns) / 1e9 > self.spec.seconds:
                self.arms[name] = ArmTiming.without_times(*NOT_REACHED)
                continue
            self.stage(name, "first call")
            self._first_call(name, arms[name], rng.randrange(BALLAST))
        self.prepared_arms = {name: self.prepared_arms[name] for name in arms if name in self.prepared_arms}
        for name, arm in arms.items():  # an arm that failed has no control, so its failure is reported once
            if name.endswith(TWIN) and arm.name not in self.prepared_arms:
                self.prepared_arms.pop(name, None)
                del self.arms[name]

    def _comes_later(self, arm: Arm) -> tuple[bool, bool]:
        """Return a key that sorts the loop that users would write first, and in it the question's pair."""
        return bool(self.spec.loop) and arm.recurrence != self.spec.loop, arm.projection not in PAIR

    def _arms_by_name(self) -> dict[str, Arm]:
        """Return the arms by name, including the A/A controls of the batched arms."""
        arms = {arm.name: arm for arm in self.spec.arms}
        if self.spec.rounds and self.spec.control:
            arms |= {f"{a.recurrence}_{TWIN}": a for a in self.spec.arms if a.projection == BATCHED}
        return arms

    def _first_call(self, name: str, arm: Arm, ballast_bytes: int) -> None:
        """Prepare an arm, call it first on the probe inputs and then on the real ones, and keep both outputs.

        A failure is recorded in the arm's timing.
        """
        arm_timing = self.arms.setdefault(name, ArmTiming.without_times())
        data = data_for(arm, self.spec.data)
        spec = self.spec
        program = Program(arm, spec.cell, spec.pass_, spec.execution, spec.loss, spec.layers)
        try:
            ballast = np.ones(ballast_bytes, np.uint8)
            w, *real_inputs = self.backend.put(data)
            _, *probe_inputs = self.backend.put(probe_data(data))
            run = self.backend.prepare(program, w)
            arm_timing.first_call_ns, probe_outputs = time_calls(
                self.meters.clock, self.backend.wait, run, probe_inputs, 1
            )
            if self.spec.overwrites:
                probe_outputs = self.backend.get(program, probe_outputs)
            _, real_outputs = time_calls(self.meters.clock, self.backend.wait, run, real_inputs, 1)
            real_outputs = self.backend.get(program, real_outputs)
            # Unless calls overwrite outputs, fetch these only after the second call, to detect a reused buffer.
            probe_outputs = probe_outputs if self.spec.overwrites else self.backend.get(program, probe_outputs)
        except Unavailable as error:
            arm_timing.status, arm_timing.reason = "unavailable", str(error)
        except Exception as error:  # whatever a framework raises is a record, not a crash
            arm_timing.status, arm_timing.reason = "failed", f"{type(error).__name__}: {first_line(error)}"
        else:
            self.keep(name, "before", probe_outputs)
            self.keep(name, "after", real_outputs)
            self.prepared_arms[name] = PreparedArm(run, real_inputs, ballast, program=program)

    def run_rounds(self, timer: float) -> None:
        """Time every prepared arm, and keep the outputs of its last sample."""
        assert self.spec.rounds is not None

        def keep_last(name: str, outputs: Any) -> None:
            self.keep(name, "after", self.backend.get(self.prepared_arms[name].program, outputs))

        rounds = Rounds(self.prepared_arms, self.arms, self.backend.wait, self.meters, keep_last)
        calls, count = rounds.plan(self.spec.rounds, timer, self.spec.calls)
        rounds.run(calls, count, self.spec.seed, self.backend.compilations)

    def measure_peaks(self) -> None:
        """Measure the memory of every prepared arm. None is kept of what it returns."""
        for name, entry in self.prepared_arms.items():
            self.stage(name, "peak memory")

            def call(entry: PreparedArm = entry) -> None:
                self.backend.wait(entry.run(*entry.inputs))

            self.arms[name].peak = peak_memory.measure(call, self.backend.peak_bytes, self.spec.on_gpu)

    def record_evidence(self) -> dict[str, dict[str, str]]:
        """Collect the evidence of the `counted` arms, after all timing, and return their programs' texts."""
        texts = {}
        for arm in self.spec.counted:
            if entry := self.prepared_arms.get(arm.name):
                self.stage(arm.name, "evidence")
                self.arms[arm.name].evidence, texts[arm.name] = collect_evidence(self.backend, entry)
        return texts


def collect_evidence(backend: Backend, entry: PreparedArm) -> tuple[Evidence, dict[str, str]]:
    """Return an arm's evidence and its program's texts, or evidence whose `missing` names the error."""
    try:
        evidence, texts = backend.evidence(entry.program, entry.run, entry.inputs)
    except Exception as error:  # whatever a framework raises is a reason, not a crash
        return Evidence(missing={"everything": f"{type(error).__name__}: {first_line(error)}"}), {}
    libraries.state(evidence)
    return evidence, texts


def null_ns(backend: Backend, spec: TimingSpec, clock: Callable[[], int]) -> float:
    """Return the nanoseconds of a call of an empty program, waited for.

    This is what calling costs before anything is computed.
    """
    w, *inputs = backend.put(spec.data)
    return _per_call_ns(
        clock, backend.wait, backend.prepare(Program(NULL, spec.cell, "forward", spec.execution), w), inputs
    )


def harness_ns(clock: Callable[[], int]) -> float:
    """Return the nanoseconds that the timed region itself adds to a call."""
    return _per_call_ns(clock, lambda outputs: None, lambda x, target: None, (None, None))


def _per_call_ns(clock: Callable[[], int], wait: Callable[[Any], None], run: Run, inputs: Sequence[Any]) -> float:
    """Return the median nanoseconds per call over NULL_SAMPLES samples of NULL_CALLS calls, after two calls."""
    time_calls(clock, wait, run, inputs, 2)
    return statistics.median(
        time_calls(clock, wait, run, inputs, NULL_CALLS)[0] / NULL_CALLS for _ in range(NULL_SAMPLES)
    )


def turns(names: list[str], count: int, seed: int) -> Iterator[list[str]]:
    """Yield the order of each of `count` rounds: every name once, shuffled anew."""
    shuffle = random.Random(seed).shuffle
    for _ in range(count):
        shuffle(names)
        yield names


def timer_ns(clock: Callable[[], int]) -> float:
    """Return the nanoseconds that reading the clock costs: the mean of a thousand readings."""
    start = clock()
    for _ in range(1000):
        clock()
    return max((clock() - start) / 1001, 1.0)


def threads_used(
    product: Callable[[], None], cpu: Callable[[], int], clock: Callable[[], int], least_s: float = 0.3
) -> float:
    """Return processor time over wall time of a large product, repeated for at least `least_s` seconds."""
    product()
    start_cpu, start = cpu(), clock()
    while clock() - start < least_s * 1e9:
        product()
    return (cpu() - start_cpu) / (clock() - start)


def prove_threads(
    threads: int, product: Callable[[], None], cpu: Callable[[], int], clock: Callable[[], int], tries: int = 6
) -> tuple[bool, float]:
    """Return whether a product keeps `threads` cores busy to within 10%, and the nearest ratio measured.

    A busy machine takes cores away for a moment, so up to `tries` measurements are made.
    """
    ratios: list[float] = []
    for _ in range(tries):
        ratios.append(threads_used(product, cpu, clock))
        if abs(ratios[-1] / threads - 1) <= 0.1:
            return True, ratios[-1]
    return False, min(ratios, key=lambda ratio: abs(ratio / threads - 1))


def first_line(error: BaseException) -> str:
    """Return the first informative line of an error's message, cut to 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative_lines = [line for line in lines if not line.startswith("backend=")]
    return (informative_lines or lines or ["no message"])[0][:300]
