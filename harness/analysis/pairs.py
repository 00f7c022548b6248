"""Results of a comparison of a user's functions: ratios of times, and what is said of them.

Pure: the same records give the same results.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.analysis import stats
from harness.analysis.stats import Gap
from harness.records.pair import CONTROL, PairHeaderRecord, PairRecord, TimedRecord
from harness.records.samples import median_call_s
from harness.records.store import latest_records
from harness.study.configuration import Configuration
from impls.evidence import Evidence


@dataclass(frozen=True)
class PairGap:
    """Ratio of the times of a function and the baseline in one configuration and pass, with its verdict.

    `control` is the baseline's ratio to itself (A/A) in the same processes.
    """

    configuration: Configuration
    pass_: str
    contender: str
    gap: Gap
    verdict: str
    control: Gap
    rounds: int

    @property
    def has_interval(self) -> bool:
        """Return whether there are processes enough for an interval."""
        return self.gap.processes > 1

    @property
    def is_included(self) -> bool:
        """Return whether the ratio counts: it has an interval, and that of its control holds 1."""
        return self.has_interval and self.control.low <= 1 <= self.control.high


@dataclass(frozen=True)
class FunctionTimes:
    """Times of one function in a configuration and pass, in seconds, and what one call of it does.

    `call_s`: the median over processes of each one's median call. `first_call_s`: of the process that compiles.
    """

    configuration: Configuration
    pass_: str
    function: str
    call_s: float
    first_call_s: float | None
    calls: int
    evidence: Evidence | None


def header_of(records: Sequence[PairRecord]) -> PairHeaderRecord:
    """Return a comparison's header, which is its first record."""
    header = records[0]
    assert isinstance(header, PairHeaderRecord)
    return header


def timed_records(records: Sequence[PairRecord]) -> list[TimedRecord]:
    """Return the last record of every pass of every process."""
    return latest_records(records, TimedRecord)


def pair_gaps(records: Sequence[PairRecord]) -> list[PairGap]:
    """Return every function's ratio to the baseline, in the order of the configurations and passes.

    Verdicts are corrected over the ratios of one execution, which a reader reads together.
    """
    header = header_of(records)
    margin = header.study.margin
    found: list[PairGap] = []
    for configuration in header.configurations:
        gaps = [
            _estimate(group, header.baseline, contender, margin)
            for pass_ in header.passes
            for contender in header.contenders
            if (group := _measured(records, configuration, pass_, (header.baseline, contender, CONTROL)))
        ]
        verdicts = stats.verdicts([gap.gap for gap in gaps])
        found += [replace(gap, verdict=verdict) for gap, verdict in zip(gaps, verdicts, strict=True)]
    return found


def _measured(
    records: Sequence[PairRecord], configuration: Configuration, pass_: str, names: Sequence[str]
) -> list[TimedRecord]:
    """Return the processes in which all functions of the given names have times."""
    return [
        record
        for record in timed_records(records)
        if (record.configuration, record.pass_) == (configuration, pass_)
        and all(name in record.arms and record.arms[name].has_times for name in names)
    ]


def _estimate(group: list[TimedRecord], baseline: str, contender: str, margin: float) -> PairGap:
    """Return a function's ratio, with the verdict that it leans to. A sample has as many calls in every function."""

    def ratio(name: str) -> Gap:
        times = [(record.arms[name].samples_ns, record.arms[baseline].samples_ns) for record in group]
        return stats.estimate_gap(stats.gap_sample(times), margin)

    gap = ratio(contender)
    rounds = int(statistics.median(len(record.arms[contender].samples_ns) for record in group))
    first = group[0]
    return PairGap(first.configuration, first.pass_, contender, gap, gap.leaning, ratio(CONTROL), rounds)


def function_times(records: Sequence[PairRecord]) -> list[FunctionTimes]:
    """Return the times of every function that has any, in the order of the configurations and passes."""
    header = header_of(records)
    return [
        _times(group, name)
        for configuration in header.configurations
        for pass_ in header.passes
        for name in header.functions
        if (group := _measured(records, configuration, pass_, [name]))
    ]


def _times(group: list[TimedRecord], name: str) -> FunctionTimes:
    """Return the times of a function. What one call does was counted in the first process alone."""
    first = group[0]
    cold = next((record.arms[name].first_call_ns for record in group if record.replicate == 0), None)
    return FunctionTimes(
        first.configuration,
        first.pass_,
        name,
        statistics.median(median_call_s(record.arms[name]) for record in group),
        None if cold is None else cold / 1e9,
        first.arms[name].calls,
        next((record.arms[name].evidence for record in group if record.arms[name].evidence), None),
    )


def unavailable(records: Sequence[PairRecord]) -> list[str]:
    """Return a sentence for each function that an execution cannot time, with the reason."""
    sentences = [
        f"{record.configuration.execution} {record.pass_}, {name}: {arm.reason}"
        for record in timed_records(records)
        for name, arm in record.arms.items()
        if arm.status == "unavailable" and name != CONTROL
    ]
    return list(dict.fromkeys(sentences))


def problems(records: Sequence[PairRecord]) -> list[str]:
    """Return a sentence for each process and function that is not sound, and one where nothing was timed at all."""
    header = header_of(records)
    sentences = [
        f"{record.configuration.execution} {record.pass_}, process {record.replicate}: {record.reason}"
        for record in timed_records(records)
        if record.status != "ok"
    ]
    if not pair_gaps(records):
        budget = header.study.budget_s
        cause = "the budget ended before the first process" if budget and not sentences else "no process has times"
        sentences.append(f"nothing was compared: {cause}")
    return sentences
