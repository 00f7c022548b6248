"""One block: its arms' first calls, their outputs, and their alternating rounds.

Runs in the worker. The backend, the clock and the random order are handed in.
"""

import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.study.data import data_for, probe
from harness.study.parts import BATCHED, PAIR, TWIN
from impls.evidence import Evidence
from impls.interface import NULL_ARM, Arm, Backend, Data, Outputs, Program, Run, Unavailable

NULL = Arm(*NULL_ARM)
NULL_SAMPLES, NULL_CALLS = 50, 20
TIMER_COSTS = 1000  # a sample lasts at least this many times what reading the clock costs
BALLAST = 1 << 20  # bytes at most before an arm's arrays, so that they begin elsewhere in every process


@dataclass(frozen=True)
class Rounds:
    """How often each arm is timed: about `block_s` seconds, within the two limits."""

    least: int
    most: int
    block_s: float


@dataclass(frozen=True)
class Block:
    """Arms of one workload and pass; `rounds` is None when outputs are wanted and no times.

    `counted` are the arms of which is counted what they do in a call; `control`: whether batched has a twin.
    `calls` of a sample, the same for every arm; None: as many as the shortest arm needs. `hurried`: its time may end
    before all are called, so that those without which the others say nothing come first.
    """

    cell: str
    pass_: str
    execution: str
    arms: list[Arm]
    data: Data
    rounds: Rounds | None
    seed: int
    seconds: float = math.inf  # no first call is begun later than this
    counted: tuple[Arm, ...] = ()
    control: bool = True
    calls: int | None = None
    hurried: bool = False
    overwrites: bool = False  # whether a call's outputs are lent until the next one


@dataclass(frozen=True)
class Meters:
    """What is read before and after the timed region: nanoseconds, and the process's minor page faults so far."""

    clock: Callable[[], int]
    faults: Callable[[], int]


Keep = Callable[[str, str, Outputs], None]  # is given an arm's name, a moment (before, after) and its outputs


@dataclass
class ArmTiming:
    """One arm in one block. Times in nanoseconds; a sample is the time of `calls` calls, `faults` the minor page
    faults of its process meanwhile.
    """

    status: str = "ok"
    reason: str = ""
    first_call_ns: int | None = None
    calls: int = 1
    samples_ns: list[int] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    evidence: Evidence | None = None


@dataclass(frozen=True)
class PreparedArm:
    """A prepared arm that was called once: what is called, and with what. Its outputs are nobody's."""

    program: Program
    run: Run
    inputs: Sequence[Any]  # x, target
    ballast: Any = None  # what keeps its arrays from where another process has them


@dataclass
class Result:
    """What a block gave, but for outputs. `texts`: arm -> file name -> its program's text."""

    arms: dict[str, ArmTiming]
    timer_ns: float
    texts: dict[str, dict[str, str]]


def timed(
    clock: Callable[[], int], wait: Callable[[Any], None], run: Run, inputs: Sequence[Any], calls: int
) -> tuple[int, Any]:
    """The one timed region: nanoseconds of `calls` calls, each waited for, and the last outputs."""
    start = clock()
    for _ in range(calls):
        outputs = run(*inputs)
        wait(outputs)
    return clock() - start, outputs


def block(
    backend: Backend,
    todo: Block,
    meters: Meters,
    keep: Keep,
    stage: Callable[[str, str], None],
) -> Result:
    """Run one block. `keep` is given outputs as soon as they are fetched, so that no arm's lie beside another that is
    timed; `stage` is told what is about to happen to which arm.
    """
    run = _Running(backend, todo, meters, keep, stage)
    run.first_calls()
    timer = timer_ns(meters.clock)
    if todo.rounds and run.entries:
        stage("", "rounds")
        run.rounds(timer)
    return Result(run.arms, timer, run.evidence())


@dataclass
class _Running:
    """A block on its way: what it is made of, and what it has given so far."""

    backend: Backend
    todo: Block
    meters: Meters
    keep: Keep
    stage: Callable[[str, str], None]
    arms: dict[str, ArmTiming] = field(default_factory=dict)
    entries: dict[str, PreparedArm] = field(default_factory=dict)

    def first_calls(self) -> None:
        """Prepare and call every arm, and the twins, in an order of this process's own: so their arrays lie elsewhere
        in every process. In a hurried block the pair of the question comes first.
        """
        began, names = self.meters.clock(), self._names()
        self.arms = {name: ArmTiming() for name in names if not name.endswith(TWIN)}
        chance = random.Random(self.todo.seed)
        order = chance.sample(list(names), len(names))
        if self.todo.hurried:
            order.sort(key=lambda name: (names[name].projection not in PAIR, name.endswith(TWIN)))
        for name in order:
            if (self.meters.clock() - began) / 1e9 > self.todo.seconds:
                self.arms[name] = ArmTiming("not_reached", "the time for this process ended before its first call")
                continue
            self.stage(name, "first call")
            self._first(name, names[name], chance.randrange(BALLAST))
        self.entries = {name: self.entries[name] for name in names if name in self.entries}
        for name, arm in names.items():  # a program that failed has no control, and is named once
            if name.endswith(TWIN) and arm.name not in self.entries:
                self.entries.pop(name, None)
                del self.arms[name]

    def _names(self) -> dict[str, Arm]:
        """The arms by their names, and with them the twins of those that project once."""
        names = {arm.name: arm for arm in self.todo.arms}
        if self.todo.rounds and self.todo.control:
            names |= {f"{a.recurrence}_{TWIN}": a for a in self.todo.arms if a.projection == BATCHED}
        return names

    def _first(self, name: str, arm: Arm, ballast: int) -> None:
        """An arm's first call, on the probe, and one on the real inputs; a failure stays with the arm."""
        timed_arm = self.arms.setdefault(name, ArmTiming())
        data = data_for(arm, self.todo.data)
        program = Program(arm, self.todo.cell, self.todo.pass_, self.todo.execution)
        try:
            held = np.ones(ballast, np.uint8)
            w, *real = self.backend.put(data)
            _, *other = self.backend.put(probe(data))
            run = self.backend.prepare(program, w)
            timed_arm.first_call_ns, before = timed(self.meters.clock, self.backend.wait, run, other, 1)
            if self.todo.overwrites:
                before = self.backend.get(program, before)
            _, after = timed(self.meters.clock, self.backend.wait, run, real, 1)
            after = self.backend.get(program, after)
            # Fetched after a later call, where they may be kept: a reused buffer would show.
            before = before if self.todo.overwrites else self.backend.get(program, before)
        except Unavailable as error:
            timed_arm.status, timed_arm.reason = "unavailable", str(error)
        except Exception as error:  # whatever a framework raises is a record, not a crash
            timed_arm.status, timed_arm.reason = "failed", f"{type(error).__name__}: {first_line(error)}"
        else:
            self.keep(name, "before", before)
            self.keep(name, "after", after)
            self.entries[name] = PreparedArm(program, run, real, held)

    def rounds(self, timer: float) -> None:
        """Time every arm once a round, in a new random order each round (that of `seed`)."""
        assert self.todo.rounds is not None
        calls, count = self._amounts(self.todo.rounds, timer)
        before = self.backend.compilations()
        gc.collect()
        gc.disable()
        try:
            for number, names in enumerate(turns(list(self.entries), count, self.todo.seed), 1):
                for name in names:
                    self._sample(name, calls, last=number == count)
        finally:
            gc.enable()
        if self.backend.compilations() != before:
            for arm in self.arms.values():
                if arm.status == "ok":
                    arm.status, arm.reason = "refused", "something was traced or compiled while it was timed"

    def _amounts(self, rounds: Rounds, timer: float) -> tuple[int, int]:
        """Calls of a sample, the same for every arm, and the number of rounds."""
        took = {}
        for name, entry in self.entries.items():
            for _ in range(2):  # the second of two calls is the estimate
                took[name] = max(timed(self.meters.clock, self.backend.wait, entry.run, entry.inputs, 1)[0], 1)
        calls = self.todo.calls or max(1, math.ceil(TIMER_COSTS * timer / min(took.values())))
        spent = calls * sum(took.values())
        return calls, int(min(rounds.most, max(rounds.least, rounds.block_s * 1e9 // spent)))

    def _sample(self, name: str, calls: int, last: bool) -> None:
        """One sample of an arm; its outputs are dropped, but those of the last one are fetched and handed on."""
        entry, into = self.entries[name], self.arms[name]
        faults = self.meters.faults()
        took, outputs = timed(self.meters.clock, self.backend.wait, entry.run, entry.inputs, calls)
        into.faults.append(self.meters.faults() - faults)
        into.samples_ns.append(took)
        into.calls = calls
        if last:
            self.keep(name, "after", self.backend.get(entry.program, outputs))

    def evidence(self) -> dict[str, dict[str, str]]:
        """Have programs' calls counted, after everything was timed; returns the programs' texts."""
        texts = {}
        for arm in self.todo.counted:
            if entry := self.entries.get(arm.name):
                self.stage(arm.name, "evidence")
                self.arms[arm.name].evidence, texts[arm.name] = counted(self.backend, entry)
        return texts


def counted(backend: Backend, entry: PreparedArm) -> tuple[Evidence, dict[str, str]]:
    """A program's evidence, or what kept it from being had."""
    try:
        return backend.evidence(entry.program, entry.run, entry.inputs)
    except Exception as error:  # whatever a framework raises is a reason, not a crash
        return Evidence(missing={"everything": f"{type(error).__name__}: {first_line(error)}"}), {}


def null_ns(backend: Backend, todo: Block, clock: Callable[[], int]) -> float:
    """Nanoseconds of a call of an empty program, waited for: what calling costs before anything is computed."""
    w, *inputs = backend.put(todo.data)
    return _per_call_ns(
        clock, backend.wait, backend.prepare(Program(NULL, todo.cell, "forward", todo.execution), w), inputs
    )


def harness_ns(clock: Callable[[], int]) -> float:
    """Nanoseconds that the timed region itself adds to a call."""
    return _per_call_ns(clock, lambda outputs: None, lambda x, target: None, (None, None))


def _per_call_ns(clock: Callable[[], int], wait: Callable[[Any], None], run: Run, inputs: Sequence[Any]) -> float:
    timed(clock, wait, run, inputs, 2)
    return statistics.median(timed(clock, wait, run, inputs, NULL_CALLS)[0] / NULL_CALLS for _ in range(NULL_SAMPLES))


def turns(names: list[str], count: int, seed: int) -> Iterator[list[str]]:
    """The order of each of `count` rounds: every name once, shuffled anew."""
    shuffle = random.Random(seed).shuffle
    for _ in range(count):
        shuffle(names)
        yield names


def timer_ns(clock: Callable[[], int]) -> float:
    """What reading the clock costs, in nanoseconds: the mean of a thousand readings."""
    start = clock()
    for _ in range(1000):
        clock()
    return max((clock() - start) / 1001, 1.0)


def threads_used(
    product: Callable[[], None], cpu: Callable[[], int], clock: Callable[[], int], least_s: float = 0.3
) -> float:
    """Processor time over wall time of a large product repeated for at least `least_s` seconds."""
    product()
    start_cpu, start = cpu(), clock()
    while clock() - start < least_s * 1e9:
        product()
    return (cpu() - start_cpu) / (clock() - start)


def threads_proven(
    threads: int, product: Callable[[], None], cpu: Callable[[], int], clock: Callable[[], int], tries: int = 6
) -> tuple[bool, float]:
    """Whether a product keeps `threads` cores busy to within 10%, and the nearest ratio seen.

    A busy machine takes cores away for a moment, so a few tries are allowed.
    """
    seen: list[float] = []
    for _ in range(tries):
        seen.append(threads_used(product, cpu, clock))
        if abs(seen[-1] / threads - 1) <= 0.1:
            return True, seen[-1]
    return False, min(seen, key=lambda ratio: abs(ratio / threads - 1))


def first_line(error: BaseException) -> str:
    """The first telling line of an error, cut to a sentence's length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("backend=")]
    return (telling or lines or ["no message"])[0][:300]
