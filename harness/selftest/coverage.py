"""The harness tested on known truth: how often its intervals cover, and how often it reports a wrong difference.

Each row measures simulated machines (harness.selftest.simulation) with the code that measures real ones, and gives the
result beside its target. The last row measures a real delay, made by waiting.
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
from harness.study.study import Study, load_study
from impls.interface import Program, Run, Weights

WORLD = simulation.World()
UNEQUAL = simulation.World(arm=0.05)  # processes that favour one arm or the other
WILD = replace(WORLD, arm=6 * WORLD.arm)  # a gap varies six times as much between processes as in WORLD
HALVES = (WORLD, WILD)
NODED = replace(WORLD, arm=3 * WORLD.arm)  # where what differs between processes, and nodes, outweighs the rounds
STUDY = Study()
MARGIN = STUDY.margin
COSTS = sample_size.BlockCosts(process_s=2.0, round_s=0.02)
PROCESSES, ROUNDS = 10, 40
FEW, GAPS, FEW_ROUNDS = 3, 20, 5  # for a study of many gaps in few processes
NODES, ON_EACH = 4, 3  # nodes of a cluster, and processes on each
TRUTHS = (0.8, 0.95, 1.0, 1.02, 1.1, 1.5)
NEAR = (0.97, 0.98, 0.99, 1.01, 1.02, 1.03)
REAL: dict[str, Any] = {  # 432 blocks, each with the batched arm and its A/A control
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
CHUNK = 25  # studies per task
DELAY, WAIT_NS = 1.02, 1_000_000


class Case(NamedTuple):
    """A true ratio, the measured gap, and the simulated world."""

    true: float
    gap: stats.Gap
    world: simulation.World


@dataclass(frozen=True)
class TargetResult:
    """A target and the result over `cases` gaps."""

    what: str
    cases: int
    found: str
    target: str
    met: bool


def control_study() -> Study:
    """Return the study that consists of A/A controls only."""
    return load_study(None, None, REAL)


def say(studies: int, seed: int) -> int:
    """Print every target with its result; return 1 if one is missed, else 0."""
    results = rows(studies, seed, environment.cores())
    table = Table("", "cases", "found", "target", "met")
    for row in results:
        table.add_row(row.what, f"{row.cases:,}", row.found, row.target, "yes" if row.met else "NO")
    console().print(table, markup=False)
    return 0 if all(row.met for row in results) else 1


Make = Callable[[np.random.Generator], list[Case]]


Worlds = tuple[simulation.World, ...]  # a study's gaps lie in these worlds in turns


def simulate_one_gap(worlds: Worlds, truths: tuple[float, ...], rng: np.random.Generator) -> list[Case]:
    """Simulate a study of one gap in many processes."""
    ratio, world = float(rng.choice(truths)), worlds[0]
    return [Case(ratio, stats.estimate_gap(simulation.sample(world, ratio, PROCESSES, ROUNDS, rng), MARGIN), world)]


def simulate_on_nodes(worlds: Worlds, truths: tuple[float, ...], rng: np.random.Generator) -> list[Case]:
    """Simulate a study of one gap on several nodes of a cluster, which differ as much as processes do."""
    ratio, world = float(rng.choice(truths)), worlds[0]
    sample, _ = simulation.node_sample(world, ratio, NODES, ON_EACH, FEW_ROUNDS, rng)
    return [Case(ratio, stats.estimate_gap(sample, MARGIN), world)]


def simulate_many_gaps(worlds: Worlds, truths: tuple[float, ...], rng: np.random.Generator) -> list[Case]:
    """Simulate a study of many gaps in few processes, where each gap has many rounds or few."""
    cases = []
    for ratio, rounds, world in zip(*_draw_gaps(truths, rng), cycle(worlds), strict=False):
        sample = simulation.sample(world, ratio, FEW, rounds, rng)
        cases.append(Case(ratio, stats.estimate_gap(sample, MARGIN), world))
    return cases


def _draw_gaps(truths: tuple[float, ...], rng: np.random.Generator) -> tuple[list[float], list[int]]:
    """Draw a true ratio and a number of rounds for each gap of a study."""
    return rng.choice(truths, GAPS).tolist(), rng.choice([FEW_ROUNDS, ROUNDS], GAPS).tolist()


def simulate_with_pilot(worlds: Worlds, truths: tuple[float, ...], rng: np.random.Generator) -> list[Case]:
    """Simulate a study of many gaps whose pilot decides how many processes and rounds each gap gets."""
    places = list(zip(rng.choice(truths, GAPS).tolist(), cycle(worlds), strict=False))
    pilots = [simulation.measure_processes(world, ratio, FEW, ROUNDS, rng) for ratio, world in places]
    samples = [stats.gap_sample(times) for times in pilots]
    prior = stats.fit_prior(samples)
    cases = []
    for (ratio, world), times, sample in zip(places, pilots, samples, strict=True):
        variances = stats.variance_components(sample, ROUNDS, prior)
        assert variances is not None
        required_size = sample_size.required_sample_size([variances], COSTS, STUDY.target, FEW_ROUNDS, 2 * ROUNDS)
        extra_processes = max(0, min(required_size.processes, STUDY.processes_max) - FEW)
        full_sample = stats.gap_sample(
            [*times, *simulation.measure_processes(world, ratio, extra_processes, required_size.rounds, rng)]
        )
        cases.append(Case(ratio, stats.estimate_gap(full_sample, MARGIN), world))
    return cases


def simulate_studies(make: Make, studies: int, seed: int, workers: int) -> list[Case]:
    """Return the cases of independent studies; they depend on the seed, but not on the number of workers."""
    seeds = np.random.SeedSequence(seed).spawn(studies)
    chunks = [seeds[start : start + CHUNK] for start in range(0, studies, CHUNK)]
    if workers == 1:
        return [case for chunk in chunks for case in _simulate_chunk(make, chunk)]
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        return [case for cases in pool.map(partial(_simulate_chunk, make), chunks) for case in cases]


def _simulate_chunk(make: Make, seeds: list[np.random.SeedSequence]) -> list[Case]:
    """Return the cases of the studies of some seeds."""
    gc.freeze()  # every block collects garbage first, which need not search the objects that exist by now
    try:
        return [case for seed in seeds for case in make(np.random.default_rng(seed))]
    finally:
        gc.unfreeze()


def covers(case: Case) -> bool:
    """Return whether the interval contains the true ratio."""
    return case.gap.low <= case.true <= case.gap.high


def differs(case: Case) -> bool:
    """Return whether the interval excludes 1."""
    return not case.gap.low <= 1 <= case.gap.high


def has_wrong_sign(case: Case) -> bool:
    """Return whether the interval lies on one side of 1 and the true ratio on the other."""
    return case.gap.low > 1 > case.true or case.gap.high < 1 < case.true


def rows(studies: int, seed: int, workers: int) -> list[TargetResult]:
    """Return a row for every target.

    Each is measured in at least `studies` gaps; the power and the wrong signs in half as many.
    """

    def cases(
        make: Callable[..., list[Case]], truths: tuple[float, ...], count: int, *worlds: simulation.World
    ) -> list[Case]:
        return simulate_studies(partial(make, worlds or (WORLD,), truths), count, seed, workers)

    one_label = f"one gap, {PROCESSES} processes × {ROUNDS} rounds"
    few_label = f"{GAPS} gaps, {FEW} processes × {FEW_ROUNDS} or {ROUNDS} rounds"
    pilot_label = f"{GAPS} gaps, as a pilot asks"
    half_count, shared_count = max(1, studies // 2), max(1, studies // GAPS)
    halves_count = len(HALVES) * shared_count  # each half then has as many gaps as the other rows
    return [
        _coverage_row(f"95% interval holds the truth: {one_label}", cases(simulate_one_gap, TRUTHS, studies)),
        _coverage_row(
            f"95% interval holds the truth: {one_label}, unequal", cases(simulate_one_gap, TRUTHS, studies, UNEQUAL)
        ),
        _coverage_row(
            f"95% interval holds the truth: one gap, {NODES} nodes × {ON_EACH} processes × {FEW_ROUNDS} rounds",
            cases(simulate_on_nodes, TRUTHS, studies, NODED),
        ),
        _coverage_row(f"95% interval holds the truth: {few_label}", cases(simulate_many_gaps, TRUTHS, shared_count)),
        _coverage_row(f"95% interval holds the truth: {pilot_label}", cases(simulate_with_pilot, TRUTHS, shared_count)),
        *_half_rows(few_label, cases(simulate_many_gaps, TRUTHS, halves_count, *HALVES)),
        *_half_rows(pilot_label, cases(simulate_with_pilot, TRUTHS, halves_count, *HALVES)),
        _false_positive_row(f"a difference where there is none: {one_label}", cases(simulate_one_gap, (1.0,), studies)),
        _false_positive_row(
            f"a difference where there is none: {few_label}", cases(simulate_many_gaps, (1.0,), shared_count)
        ),
        _power_row(f"a difference of 2% is found: {one_label}", cases(simulate_one_gap, (DELAY,), half_count)),
        _wrong_sign_row(
            f"a difference of 1 to 3% with the wrong sign: {one_label}", cases(simulate_one_gap, NEAR, half_count)
        ),
        measure_delay(seed),
    ]


def _coverage_row(label: str, cases: list[Case]) -> TargetResult:
    """Return the row of how often the interval contains the true ratio."""
    rate, low, high = stats.rate_interval(sum(map(covers, cases)), len(cases))
    return TargetResult(label, len(cases), _format_rate(rate, low, high), "93% to 97%", 0.93 <= rate <= 0.97)


def _half_rows(label: str, cases: list[Case]) -> list[TargetResult]:
    """Return the coverage in each half of studies where half the gaps vary six times as much as the others."""
    names = {WORLD: "the half that varies little", WILD: "the half that varies six times as much"}
    return [
        _coverage_row(f"95% interval holds the truth: {label}, {name}", [case for case in cases if case.world == world])
        for world, name in names.items()
    ]


def _false_positive_row(label: str, cases: list[Case]) -> TargetResult:
    """Return the row of how often the interval excludes 1, for cases whose true ratio is 1."""
    rate, low, high = stats.rate_interval(sum(map(differs, cases)), len(cases))
    return TargetResult(label, len(cases), _format_rate(rate, low, high), "3% to 7%", 0.03 <= rate <= 0.07)


def _power_row(label: str, cases: list[Case]) -> TargetResult:
    """Return the row of how often the interval lies above 1, for cases whose true ratio is above 1."""
    rate, low, high = stats.rate_interval(sum(case.gap.low > 1 for case in cases), len(cases))
    return TargetResult(label, len(cases), _format_rate(rate, low, high), "at least 95%", rate >= 0.95)


def _wrong_sign_row(label: str, cases: list[Case]) -> TargetResult:
    """Return the row of how many cases have the wrong sign."""
    count = sum(map(has_wrong_sign, cases))
    return TargetResult(label, len(cases), str(count), "0", count == 0)


def _format_rate(rate: float, low: float, high: float) -> str:
    """Format a rate and its interval as percentages."""
    return f"{rate:.1%} [{low:.1%}, {high:.1%}]"


class WaitingBackend(simulation.IdleBackend):
    """A backend whose arms only wait, the contender 2% longer."""

    def prepare(self, program: Program, w: Weights) -> Run:
        """Return a callable that waits as long as the program's arm does."""
        wait = int(WAIT_NS * DELAY) if program.arm.name == simulation.CONTENDER else WAIT_NS

        def run(x: Any, target: Any) -> Any:
            end = time.perf_counter_ns() + wait
            while time.perf_counter_ns() < end:
                pass
            return x

        return run


def measure_delay(seed: int) -> TargetResult:
    """Measure a real delay of 2% with the real clock, and return its row."""
    blocks = [
        simulation.measure_block(WaitingBackend(), time.perf_counter_ns, ROUNDS, seed + process)
        for process in range(PROCESSES)
    ]
    gap = stats.estimate_gap(
        stats.gap_sample([(b[simulation.CONTENDER], b[simulation.BASELINE]) for b in blocks]), MARGIN
    )
    near = abs(gap.ratio / DELAY - 1) < 0.002
    interval = f"{gap.ratio:.4f} [{gap.low:.4f}, {gap.high:.4f}]"
    return TargetResult("a real delay of 2%, in ten blocks", PROCESSES, interval, "1.02, to 0.2%", near and gap.low > 1)
