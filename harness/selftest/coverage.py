"""The harness tested on known truth: how often its intervals hold, and how often it calls a difference wrongly.

Every row is found by measuring simulated machines (harness.selftest.simulation) with the code that measures real ones,
and stands beside the target it is held to. The last row measures a real delay, made by waiting.
"""

import gc
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from harness.analysis import sample_size, stats
from harness.machine import environment
from harness.machine.parent import end_with_parent
from harness.run.progress import console
from harness.selftest import simulation
from harness.study.study import Study, load
from impls.interface import Program, Run, Weights

WORLD = simulation.World()
UNEQUAL = simulation.World(arm=0.05)  # processes that favour one arm or the other
WILD = replace(WORLD, arm=6 * WORLD.arm)  # in which a gap varies six times as much from process to process
HALVES = (WORLD, WILD)
STUDY = Study()
MARGIN = STUDY.margin
COSTS = sample_size.Costs(process_s=2.0, round_s=0.02)
PROCESSES, ROUNDS = 10, 40
FEW, GAPS, FEW_ROUNDS = 3, 20, 5  # of a study of many gaps in few processes
TRUTHS = (0.8, 0.95, 1.0, 1.02, 1.1, 1.5)
NEAR = (0.97, 0.98, 0.99, 1.01, 1.02, 1.03)
REAL: dict[str, Any] = {  # 432 blocks, each with the batched arm and its twin
    "recurrences": ["unrolled", "scan"],
    "projections": ["batched"],
    "executions": ["eager", "graph", "xla", "inductor"],
    "workloads": [
        f"B={b},T={t},I=8,H={h},O={o}" for b in (1, 8, 32) for t, h, o in ((3, 64, 16), (5, 32, 64), (8, 48, 8))
    ],
    "processes": 4,
    "rounds": 60,
    "block_s": 0.3,
    "budget_s": None,
}
CHUNK = 25  # studies a task
DELAY, WAIT_NS = 1.02, 1_000_000


class Case(NamedTuple):
    """A true ratio, the gap that was found for it, and the world it was found in."""

    true: float
    gap: stats.Gap
    world: simulation.World


@dataclass(frozen=True)
class Row:
    """A target and what was found, in `cases` gaps."""

    what: str
    cases: int
    found: str
    target: str
    met: bool


def real() -> Study:
    """The study of nothing but controls."""
    return load(None, None, REAL)


def say(studies: int, seed: int) -> int:
    """Print every target with what was found; 1 when one is missed."""
    found = rows(studies, seed, environment.cores())
    table = Table("", "cases", "found", "target", "met")
    for row in found:
        table.add_row(row.what, f"{row.cases:,}", row.found, row.target, "yes" if row.met else "NO")
    console().print(table, markup=False)
    return 0 if all(row.met for row in found) else 1


Make = Callable[[np.random.Generator], list[Case]]


Worlds = tuple[simulation.World, ...]  # the gaps of a study lie in them in turns


def one_gap(worlds: Worlds, truths: tuple[float, ...], random: np.random.Generator) -> list[Case]:
    """A study of one gap in many processes."""
    true, world = float(random.choice(truths)), worlds[0]
    return [Case(true, stats.gap(simulation.sample(world, true, PROCESSES, ROUNDS, random), MARGIN), world)]


def many_gaps(worlds: Worlds, truths: tuple[float, ...], random: np.random.Generator) -> list[Case]:
    """A study of many gaps in few processes, each gap with many rounds or few."""
    cases = []
    for true, rounds, world in zip(*_drawn(truths, random), cycle(worlds), strict=False):
        sample = simulation.sample(world, true, FEW, rounds, random)
        cases.append(Case(true, stats.gap(sample, MARGIN), world))
    return cases


def _drawn(truths: tuple[float, ...], random: np.random.Generator) -> tuple[list[float], list[int]]:
    """A true ratio and a number of rounds for each gap of a study."""
    return random.choice(truths, GAPS).tolist(), random.choice([FEW_ROUNDS, ROUNDS], GAPS).tolist()


def planned(worlds: Worlds, truths: tuple[float, ...], random: np.random.Generator) -> list[Case]:
    """A study of many gaps whose pilot says how many processes and rounds each gets."""
    places = list(zip(random.choice(truths, GAPS).tolist(), cycle(worlds), strict=False))
    pilots = [simulation.measured(world, true, FEW, ROUNDS, random) for true, world in places]
    samples = [stats.sample(times) for times in pilots]
    before = stats.prior(samples)
    cases = []
    for (true, world), times, sample in zip(places, pilots, samples, strict=True):
        known = stats.parts(sample, ROUNDS, before)
        assert known is not None
        need = sample_size.need([known], COSTS, STUDY.target, FEW_ROUNDS, 2 * ROUNDS)
        further = max(0, min(need.processes, STUDY.processes_max) - FEW)
        whole = stats.sample([*times, *simulation.measured(world, true, further, need.rounds, random)])
        cases.append(Case(true, stats.gap(whole, MARGIN), world))
    return cases


def simulated(make: Make, studies: int, seed: int, workers: int) -> list[Case]:
    """The cases of independent studies; the same for the same seed, however many workers share them."""
    seeds = np.random.SeedSequence(seed).spawn(studies)
    chunks = [seeds[at : at + CHUNK] for at in range(0, studies, CHUNK)]
    if workers == 1:
        return [case for chunk in chunks for case in _chunk(make, chunk)]
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        return [case for part in pool.map(partial(_chunk, make), chunks) for case in part]


def _chunk(make: Make, seeds: list[np.random.SeedSequence]) -> list[Case]:
    gc.freeze()  # every block collects garbage first; what is alive now is not to be looked through each time
    try:
        return [case for seed in seeds for case in make(np.random.default_rng(seed))]
    finally:
        gc.unfreeze()


def covers(case: Case) -> bool:
    return case.gap.low <= case.true <= case.gap.high


def differs(case: Case) -> bool:
    """Whether the interval excludes 1."""
    return not case.gap.low <= 1 <= case.gap.high


def wrong_sign(case: Case) -> bool:
    """Whether the interval lies on one side of 1 and the truth on the other."""
    return case.gap.low > 1 > case.true or case.gap.high < 1 < case.true


def rows(studies: int, seed: int, workers: int) -> list[Row]:
    """Every target's row; each is found in at least `studies` gaps, the power and the signs in half as many."""

    def cases(
        make: Callable[..., list[Case]], truths: tuple[float, ...], count: int, *worlds: simulation.World
    ) -> list[Case]:
        return simulated(partial(make, worlds or (WORLD,), truths), count, seed, workers)

    one = f"one gap, {PROCESSES} processes × {ROUNDS} rounds"
    few = f"{GAPS} gaps, {FEW} processes × {FEW_ROUNDS} or {ROUNDS} rounds"
    asked = f"{GAPS} gaps, as a pilot asks"
    half, shared = max(1, studies // 2), max(1, studies // GAPS)
    twice = len(HALVES) * shared  # as many gaps in each half as in other rows
    return [
        _coverage(f"95% interval holds the truth: {one}", cases(one_gap, TRUTHS, studies)),
        _coverage(f"95% interval holds the truth: {one}, unequal", cases(one_gap, TRUTHS, studies, UNEQUAL)),
        _coverage(f"95% interval holds the truth: {few}", cases(many_gaps, TRUTHS, shared)),
        _coverage(f"95% interval holds the truth: {asked}", cases(planned, TRUTHS, shared)),
        *_halves(few, cases(many_gaps, TRUTHS, twice, *HALVES)),
        *_halves(asked, cases(planned, TRUTHS, twice, *HALVES)),
        _false(f"a difference where there is none: {one}", cases(one_gap, (1.0,), studies)),
        _false(f"a difference where there is none: {few}", cases(many_gaps, (1.0,), shared)),
        _power(f"a difference of 2% is found: {one}", cases(one_gap, (DELAY,), half)),
        _signs(f"a difference of 1 to 3% with the wrong sign: {one}", cases(one_gap, NEAR, half)),
        delayed(seed),
    ]


def _coverage(what: str, cases: list[Case]) -> Row:
    found, low, high = stats.rate(sum(map(covers, cases)), len(cases))
    return Row(what, len(cases), _percent(found, low, high), "93% to 97%", 0.93 <= found <= 0.97)


def _halves(what: str, cases: list[Case]) -> list[Row]:
    """Coverage where half the gaps vary six times as much as the others, in each half."""
    names = {WORLD: "the half that varies little", WILD: "the half that varies six times as much"}
    return [
        _coverage(f"95% interval holds the truth: {what}, {name}", [case for case in cases if case.world == world])
        for world, name in names.items()
    ]


def _false(what: str, cases: list[Case]) -> Row:
    found, low, high = stats.rate(sum(map(differs, cases)), len(cases))
    return Row(what, len(cases), _percent(found, low, high), "3% to 7%", 0.03 <= found <= 0.07)


def _power(what: str, cases: list[Case]) -> Row:
    found, low, high = stats.rate(sum(case.gap.low > 1 for case in cases), len(cases))
    return Row(what, len(cases), _percent(found, low, high), "at least 95%", found >= 0.95)


def _signs(what: str, cases: list[Case]) -> Row:
    count = sum(map(wrong_sign, cases))
    return Row(what, len(cases), str(count), "0", count == 0)


def _percent(found: float, low: float, high: float) -> str:
    return f"{found:.1%} [{low:.1%}, {high:.1%}]"


class Waiting(simulation.Still):
    """A backend of arms that do nothing but wait, the contender 2% longer."""

    def prepare(self, program: Program, w: Weights) -> Run:
        wait = int(WAIT_NS * DELAY) if program.arm.name == simulation.CONTENDER else WAIT_NS

        def run(x: Any, target: Any) -> Any:
            end = time.perf_counter_ns() + wait
            while time.perf_counter_ns() < end:
                pass
            return x

        return run


def delayed(seed: int) -> Row:
    """A real delay of 2%, measured by the real clock."""
    blocks = [simulation.block(Waiting(), time.perf_counter_ns, ROUNDS, seed + at) for at in range(PROCESSES)]
    gap = stats.gap(stats.sample([(b[simulation.CONTENDER], b[simulation.BASELINE]) for b in blocks]), MARGIN)
    near = abs(gap.ratio / DELAY - 1) < 0.002
    found = f"{gap.ratio:.4f} [{gap.low:.4f}, {gap.high:.4f}]"
    return Row("a real delay of 2%, in ten blocks", PROCESSES, found, "1.02, to 0.2%", near and gap.low > 1)
