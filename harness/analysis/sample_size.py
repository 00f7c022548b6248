"""Required processes and rounds of a gap, from the variance that a few processes have shown.

A gap's log ratio has variance (b + w / R) / N over N processes of R rounds each: b between processes, w of
a round. Its 95% interval shall be at most `target` wide on either side. A process costs f seconds whatever
its rounds, and c seconds for each of them, so the cheapest choice is

    R = sqrt(w f / (b c))      and      N = (b + w / R) (t / log(1 + target))^2

with Student's t on the degrees of freedom of the variance's estimate, or on N - 1 where they are fewer. Only
variances are used, never a ratio, and the numbers are fixed before the processes that they ask for are run.

This is two-stage sampling, but not Stein's (1945). His interval keeps the pilot's variance, which proves its
level. Here the final interval estimates the variance anew from all processes, and that estimate may be too low
where the pilot's happened to be. A simulation shows that the intervals hold 95% of the time all the same
(harness.selftest.coverage).
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.analysis import stats
from harness.analysis.gaps import DEVICE, WORKLOAD, configuration_key, fit_priors, samples_by_gap
from harness.analysis.stats import Variances
from harness.records.schema import BlockRecord, SampleSizeRecord
from harness.study.configuration import CONFIG
from harness.study.matrix import SampleSize
from harness.study.parts import TWIN, part_of
from harness.study.study import LOOPS, Study

HEADLINE = ("in_loop", "per_step")  # contenders whose gaps must be known to the target


@dataclass(frozen=True)
class BlockCosts:
    """Seconds of a process of a block, whatever its rounds, and of a round of all its arms."""

    process_s: float
    round_s: float


def required_sample_sizes(blocks: list[BlockRecord], study: Study) -> list[SampleSizeRecord]:
    """Return a row for each block whose gaps must be known to the target, except the sweep's.

    A row is the block's keys and its required processes and rounds, within the study's limits. The gaps are those of
    HEADLINE after the loops that the harness writes itself, or all gaps of a study that has none of them.
    """
    workload_names = {workload.name for workload in study.workloads}
    gap_samples = samples_by_gap(blocks)
    device_priors = fit_priors(gap_samples)
    gaps: dict[tuple[Any, ...], list[Variances]] = {}
    has_headlines = any(map(_is_headline, gap_samples))
    for key, (sample, rounds) in gap_samples.items():
        *block, recurrence, contender, _ = key
        variances = stats.variance_components(sample, rounds, device_priors[key[DEVICE]])
        included = _is_headline(key) if has_headlines else contender != TWIN
        if included and variances and key[WORKLOAD] in workload_names:
            gaps.setdefault((*block, part_of(recurrence, contender)), []).append(variances)
    costs = mean_costs(blocks)
    rows = []
    for place, block_gaps in sorted(gaps.items(), key=str):
        sample_size = required_sample_size(block_gaps, costs[place], study.target, study.rounds_min, study.rounds)
        numbers = {"processes": min(sample_size.processes, study.processes_max), "rounds": sample_size.rounds}
        keys = dict(zip((*CONFIG, "workload", "pass", "part"), place, strict=True))
        rows.append(SampleSizeRecord.model_validate(keys | numbers))
    return rows


def _is_headline(key: tuple[Any, ...]) -> bool:
    """Return whether a gap, by its key, is one of the question's."""
    *_, recurrence, contender, _ = key
    return recurrence in LOOPS and contender in HEADLINE


def mean_costs(blocks: list[BlockRecord]) -> dict[tuple[Any, ...], BlockCosts]:
    """Return the mean costs of each block's processes and rounds.

    Processes that compiled or counted are left out where there are others.
    """
    block_costs: dict[tuple[Any, ...], list[tuple[bool, float, float]]] = {}
    blocks_of_process = Counter((block.configuration, block.replicate) for block in blocks)
    for block in blocks:
        rounds = max((len(arm.samples_ns) for arm in block.arms.values()), default=0)
        if rounds and block.start_s is not None and block.seconds is not None:
            timed_s = sum(sum(arm.samples_ns) for arm in block.arms.values()) / 1e9
            start_s = block.start_s / blocks_of_process[block.configuration, block.replicate]
            key = (*configuration_key(block.configuration), block.workload.name, block.pass_, block.part)
            has_evidence = any(arm.evidence for arm in block.arms.values())
            costs = (block.replicate > 0 and not has_evidence, start_s + block.seconds - timed_s, timed_s / rounds)
            block_costs.setdefault(key, []).append(costs)
    means = {}
    for key, rows in block_costs.items():
        warm = [row for row in rows if row[0]] or rows
        means[key] = BlockCosts(*(sum(column) / len(warm) for column in list(zip(*warm, strict=True))[1:]))
    return means


def required_sample_size(
    gaps: list[Variances], costs: BlockCosts, target: float, rounds_min: int, rounds_max: int
) -> SampleSize:
    """Return the cheapest processes and rounds, from `rounds_min` to `rounds_max`, that suffice for all gaps."""
    worst = max(gaps, key=lambda gap: gap.between + gap.of_round / rounds_max)
    optimum = math.sqrt(worst.of_round * costs.process_s / (max(worst.between, 1e-30) * max(costs.round_s, 1e-9)))
    rounds = int(np.clip(round(optimum), rounds_min, rounds_max))
    return SampleSize(max(stats.required_processes(gap, rounds, target) for gap in gaps), rounds)
