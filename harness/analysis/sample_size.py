"""How many processes and rounds a gap needs, from what a few processes have shown of its variance.

A gap's log ratio has variance (b + w / R) / N over N processes of R rounds each: b between processes, w of
a round. Its 95% interval is to be at most `target` wide on either side. A process costs f seconds whatever
its rounds and c for each of them, so the cheapest way there has

    R = sqrt(w f / (b c))      and      N = (b + w / R) (t / log(1 + target))^2

with Student's t on the degrees of freedom of the variance's estimate, or on N - 1 where they are fewer. Only
variances are looked at, never a ratio, and the numbers are fixed before the processes they ask for are run.
This is two-stage sampling, but not Stein's (1945): his interval keeps the pilot's variance, and with it its
level by proof. Here the final interval estimates the variance anew from all processes, which may be too low
where the pilot's happened to be. That the intervals hold 95% of the time all the same is shown by simulation
(harness.selftest.coverage).
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.analysis import stats
from harness.analysis.gaps import CONFIG, DEVICE, WORKLOAD, priors, samples
from harness.analysis.stats import Variances
from harness.records.store import Record
from harness.study.matrix import SampleSize
from harness.study.parts import LOOPS, TWIN, part_of
from harness.study.study import Study

HEADLINE = ("in_loop", "per_step")  # contenders whose gaps are to be known


@dataclass(frozen=True)
class Costs:
    """Seconds: what a process of a block costs whatever its rounds, and a round of all its arms."""

    process_s: float
    round_s: float


def needs(blocks: list[Record], study: Study) -> list[Record]:
    """A row for each block whose gaps are to be known, but for the sweep's: its keys, and the processes and rounds
    that it needs, within the study's limits.

    Those are the gaps of HEADLINE after the loops of ours; of a study that has none of them, all.
    """
    wanted = {workload.name for workload in study.workloads}
    found = samples(blocks)
    before = priors(found)
    gaps: dict[tuple[Any, ...], list[Variances]] = {}
    headlines = any(map(_headline, found))
    for key, (sample, rounds) in found.items():
        *block, recurrence, contender, _ = key
        known = stats.parts(sample, rounds, before[key[DEVICE]])
        asked = _headline(key) if headlines else contender != TWIN
        if asked and known and key[WORKLOAD] in wanted:
            gaps.setdefault((*block, part_of(recurrence, contender)), []).append(known)
    costs = spent(blocks)
    rows = []
    for place, each in sorted(gaps.items(), key=str):
        needed = need(each, costs[place], study.target, study.rounds_min, study.rounds)
        numbers = {"processes": min(needed.processes, study.processes_max), "rounds": needed.rounds}
        rows.append(dict(zip((*CONFIG, "workload", "pass", "part"), place, strict=True)) | numbers)
    return rows


def _headline(key: tuple[Any, ...]) -> bool:
    """Whether a gap, by its key, is one of the question's."""
    *_, recurrence, contender, _ = key
    return recurrence in LOOPS and contender in HEADLINE


def spent(blocks: list[Record]) -> dict[tuple[Any, ...], Costs]:
    """What a block's processes and rounds cost, on average; compiling and counting left out if they can be."""
    seen: dict[tuple[Any, ...], list[tuple[bool, float, float]]] = {}
    together = Counter((tuple(b[name] for name in CONFIG), b["replicate"]) for b in blocks)
    for block in blocks:
        configuration = tuple(block[name] for name in CONFIG)
        rounds = max((len(arm["samples_ns"]) for arm in block["arms"].values()), default=0)
        if rounds:
            timed_s = sum(sum(arm["samples_ns"]) for arm in block["arms"].values()) / 1e9
            start_s = block["start_s"] / together[configuration, block["replicate"]]
            key = (*configuration, block["workload"]["name"], block["pass"], block.get("part", ""))
            counted = any(arm.get("evidence") for arm in block["arms"].values())
            costs = (block["replicate"] > 0 and not counted, start_s + block["seconds"] - timed_s, timed_s / rounds)
            seen.setdefault(key, []).append(costs)
    found = {}
    for key, each in seen.items():
        warm = [costs for costs in each if costs[0]] or each
        found[key] = Costs(*(sum(column) / len(warm) for column in list(zip(*warm, strict=True))[1:]))
    return found


def need(gaps: list[Variances], costs: Costs, target: float, least: int, most: int) -> SampleSize:
    """The cheapest processes and rounds, between `least` and `most`, that suffice for every gap of a block."""
    worst = max(gaps, key=lambda gap: gap.between + gap.of_round / most)
    best = math.sqrt(worst.of_round * costs.process_s / (max(worst.between, 1e-30) * max(costs.round_s, 1e-9)))
    rounds = int(np.clip(round(best), least, most))
    return SampleSize(max(stats.processes(gap, rounds, target) for gap in gaps), rounds)
