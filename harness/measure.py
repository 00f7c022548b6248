"""One block: its arms' first calls, their outputs, and their alternating rounds.

Runs in the worker. The backend, the clock and the random order are handed in.
"""

import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from impls.evidence import Evidence
from impls.interface import NULL_ARM, PRECISIONS, Arm, Backend, Data, Outputs, Program, Run, Unavailable, Weights

DTYPES = {precision: "float64" if precision == "fp64" else "float32" for precision in PRECISIONS}
TWIN = "twin"  # the batched arm under a second name: the A/A control
BATCHED = "batched"
NONE_IN_TRAINING = "the backward pass from a given gradient of h"  # older records have none: theirs had a loss of h
NULL = Arm(*NULL_ARM)
NULL_SAMPLES, NULL_CALLS = 50, 20
TIMER_COSTS = 1000  # a sample lasts at least this many times what reading the clock costs


@dataclass(frozen=True)
class Rounds:
    """How often each arm is timed: about `block_s` seconds, within the two limits."""

    least: int
    most: int
    block_s: float


@dataclass(frozen=True)
class Block:
    """One workload and pass; `rounds` is None when outputs are wanted and no times."""

    cell: str
    pass_: str
    execution: str
    arms: list[Arm]
    data: Data
    rounds: Rounds | None
    seed: int
    seconds: float = math.inf  # no first call is begun later than this
    evidence: bool = False  # whether to count what each program does
    overwrites: bool = False  # whether a call's outputs are lent until the next one


@dataclass
class Timed:
    """One arm in one block. Times in nanoseconds; a sample is the time of `calls` calls."""

    status: str = "ok"
    reason: str = ""
    first_call_ns: int | None = None
    calls: int = 1
    samples_ns: list[int] = field(default_factory=list)
    evidence: Evidence | None = None


@dataclass
class Entry:
    """A prepared arm: what is called, with what, and what it gave."""

    program: Program
    run: Run
    inputs: Sequence[Any]  # x, target
    before: Outputs  # from the probe, fetched after a later call where they may be kept: a reused buffer would show
    after: Any = None  # of the last call, as the framework gives it, or fetched where it is only lent


@dataclass
class Result:
    """What a block gave. `outputs` maps arm name and moment (before, after) to arrays."""

    arms: dict[str, Timed]
    outputs: dict[tuple[str, str], Outputs]
    timer_ns: float
    texts: dict[str, dict[str, str]]  # arm -> file name -> its program's text


def timed(
    clock: Callable[[], int], wait: Callable[[Any], None], run: Run, inputs: Sequence[Any], calls: int
) -> tuple[int, Any]:
    """The one timed region: nanoseconds of `calls` calls, each waited for, and the last outputs."""
    start = clock()
    for _ in range(calls):
        outputs = run(*inputs)
        wait(outputs)
    return clock() - start, outputs


def probe(data: Data) -> Data:
    """Other inputs of the same shapes. An output that does not follow its inputs is found by them."""
    return Data(data.weights, np.ascontiguousarray(0.75 * data.x[::-1] - 0.125).astype(data.x.dtype), data.target)


def data_for(arm: Arm, data: Data) -> Data:
    """The data an arm is called with.

    For projection none the target is the gradient of h that its backward pass starts from: [T, B, H] of cosines, no
    two of its steps alike, so that steps in a wrong order change what follows from it. For recurrence given x is
    [T, B, H], uniform on [-1, 1].
    """
    steps, batch, _ = data.x.shape
    shape = (steps, batch, data.weights.w_rec.shape[0])
    if arm.recurrence == "given":
        data = data._replace(x=_held(np.random.default_rng(shape).uniform(-1, 1, shape), data.x.dtype))
    if arm.projection == "none":
        data = data._replace(target=_held(np.cos(np.arange(math.prod(shape))).reshape(shape), data.x.dtype))
    return data


def _held(array: np.ndarray, dtype: Any) -> np.ndarray:
    """As a file of float32 numbers would hold it."""
    return array.astype("float32").astype(dtype)


def block(backend: Backend, todo: Block, clock: Callable[[], int], stage: Callable[[str, str], None]) -> Result:
    """Run one block. `stage` is told what is about to happen to which arm."""
    began = clock()
    arms: dict[str, Timed] = {}
    entries: dict[str, Entry] = {}
    for arm in todo.arms:
        if (clock() - began) / 1e9 > todo.seconds:
            arms[arm.name] = Timed("not_reached", "the time for this process ended before its first call")
            continue
        stage(arm.name, "first call")
        arms[arm.name] = Timed()
        _first(backend, todo, arm, arms[arm.name], entries, clock)
    timer = timer_ns(clock)
    if todo.rounds and entries:
        _add_twins(arms, entries)
        stage("", "rounds")
        _rounds(backend, todo, arms, entries, clock, timer)
    outputs = {}
    for name, entry in entries.items():
        outputs[name, "before"] = entry.before
        outputs[name, "after"] = _fetched(backend, todo, entry.program, entry.after)
    return Result(arms, outputs, timer, _evidence(backend, todo, arms, entries, stage))


def _evidence(
    backend: Backend, todo: Block, arms: dict[str, Timed], entries: dict[str, Entry], stage: Callable[[str, str], None]
) -> dict[str, dict[str, str]]:
    """Have every program's calls counted, after everything was timed; returns the programs' texts."""
    texts = {}
    for arm in todo.arms if todo.evidence else ():
        if entry := entries.get(arm.name):
            stage(arm.name, "evidence")
            arms[arm.name].evidence, texts[arm.name] = counted(backend, entry)
    return texts


def counted(backend: Backend, entry: Entry) -> tuple[Evidence, dict[str, str]]:
    """A program's evidence, or what kept it from being had."""
    try:
        return backend.evidence(entry.program, entry.run, entry.inputs)
    except Exception as error:  # whatever a framework raises is a reason, not a crash
        return Evidence(missing={"everything": f"{type(error).__name__}: {first_line(error)}"}), {}


def _first(
    backend: Backend, todo: Block, arm: Arm, into: Timed, entries: dict[str, Entry], clock: Callable[[], int]
) -> None:
    """An arm's first call, on the probe, and one on the real inputs; a failure stays with the arm."""
    data = data_for(arm, todo.data)
    program = Program(arm, todo.cell, todo.pass_, todo.execution)
    try:
        w, *real = backend.put(data)
        _, *other = backend.put(probe(data))
        run = backend.prepare(program, w)
        into.first_call_ns, outputs = timed(clock, backend.wait, run, other, 1)
        outputs = _kept(backend, todo, program, outputs)
        _, after = timed(clock, backend.wait, run, real, 1)
        after = _kept(backend, todo, program, after)
        entries[arm.name] = Entry(program, run, real, _fetched(backend, todo, program, outputs), after)
    except Unavailable as error:
        into.status, into.reason = "unavailable", str(error)
    except Exception as error:  # whatever a framework raises is a record, not a crash
        into.status, into.reason = "failed", f"{type(error).__name__}: {first_line(error)}"


def _kept(backend: Backend, todo: Block, program: Program, outputs: Any) -> Any:
    """A call's outputs, fetched where the next call would write over them."""
    return backend.get(program, outputs) if todo.overwrites else outputs


def _fetched(backend: Backend, todo: Block, program: Program, kept: Any) -> Outputs:
    """What was kept of a call, as NumPy arrays."""
    return kept if todo.overwrites else backend.get(program, kept)


def _add_twins(arms: dict[str, Timed], entries: dict[str, Entry]) -> None:
    for name in list(entries):
        recurrence, _, projection = name.partition("_")
        if projection == BATCHED:
            twin = f"{recurrence}_{TWIN}"
            arms[twin] = Timed(first_call_ns=arms[name].first_call_ns)
            entries[twin] = replace(entries[name], after=None)


def _rounds(
    backend: Backend,
    todo: Block,
    arms: dict[str, Timed],
    entries: dict[str, Entry],
    clock: Callable[[], int],
    timer: float,
) -> None:
    """Time every arm once a round, in a new random order each round (that of `seed`)."""
    rounds = todo.rounds
    assert rounds is not None
    spent = 0.0
    for name, entry in entries.items():  # the second of two calls is the estimate
        for _ in range(2):
            took, entry.after = timed(clock, backend.wait, entry.run, entry.inputs, 1)
        arms[name].calls = max(1, math.ceil(TIMER_COSTS * timer / max(took, 1)))
        spent += arms[name].calls * took
    count = int(min(rounds.most, max(rounds.least, rounds.block_s * 1e9 // max(spent, 1))))
    before = backend.compilations()
    gc.collect()
    gc.disable()
    try:
        for names in turns(list(entries), count, todo.seed):
            for name in names:
                entry = entries[name]
                took, entry.after = timed(clock, backend.wait, entry.run, entry.inputs, arms[name].calls)
                arms[name].samples_ns.append(took)
                if len(arms[name].samples_ns) == count:
                    entry.after = _kept(backend, todo, entry.program, entry.after)
    finally:
        gc.enable()
    if backend.compilations() != before:
        for arm in arms.values():
            if arm.status == "ok":
                arm.status, arm.reason = "refused", "something was traced or compiled while it was timed"


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


def cast(data: Data, dtype: str) -> Data:
    """The data in another precision."""
    return Data(Weights(*(a.astype(dtype) for a in data.weights)), data.x.astype(dtype), data.target.astype(dtype))


def calls_ns(arm: dict[str, Any]) -> np.ndarray:
    """Nanoseconds per call of every sample of a recorded arm."""
    return np.array(arm["samples_ns"], float) / arm["calls"]


def median_s(arm: dict[str, Any]) -> float:
    """Median seconds per call of a recorded arm."""
    return statistics.median(arm["samples_ns"]) / arm["calls"] / 1e9
