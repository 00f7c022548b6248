"""Gaps between the arms of a block, pair by pair, over its processes.

Pure: the same records give the same gaps.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.records.samples import call_times_ns
from harness.records.schema import BlockRecord
from harness.study.configuration import CONFIG, Configuration
from harness.study.parts import BATCHED, OWN, TWIN
from harness.study.study import LOOPS, Study
from impls.interface import CHUNKED, CHUNKED_LOSS, IN_LOOP_LOSS, family_of

ENGINE = ["framework", "execution", "device", "precision"]  # what runs a program, whatever its threads
ARM = ["recurrence", "projection"]
GAP_KEYS = [*CONFIG, "workload", "pass", "recurrence", "contender"]
GAPS = [
    *GAP_KEYS, "baseline", "ratio", "ci_low", "ci_high", "processes", "rounds", "verdict", "trusted", "needs",
    "direction",
]  # fmt: skip
DEVICE, WORKLOAD = GAP_KEYS.index("device"), GAP_KEYS.index("workload")
CONTENDERS = (
    *("in_loop", "per_step", "bmm", "vmap", "library", "time_distributed", "hoisted", IN_LOOP_LOSS),
    TWIN,
)
CHUNKS = (CHUNKED, CHUNKED_LOSS)  # families of contenders, one for each number of chunks
ADDED = ("in_loop", "per_step", BATCHED)  # projections whose costs are separated from the loop's
PairNames = tuple[str, str, str, str]  # recurrence and projection of the contender; the baseline's name, and its arm
MeasuredPair = tuple[tuple[str, str, str], str, str]  # the first three of PairNames; the names of both arms


class ProcessTimes(NamedTuple):
    """Nanoseconds a call of contender and baseline in the rounds of one process, and the node that it ran on."""

    contender: np.ndarray
    baseline: np.ndarray
    node: str


PairedTimes = dict[tuple[Any, ...], list[ProcessTimes]]  # *CONFIG, workload, pass and the first three of PairNames
PrototypeReasons = dict[tuple[str, str, str], str]  # framework, execution, recurrence of a prototype -> why it is one
GapSamples = dict[
    tuple[Any, ...], tuple[stats.Sample, float]
]  # (*GAP_KEYS' values, baseline) -> its sample, its rounds


def gaps_and_contrasts(blocks: list[BlockRecord], study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the gaps of a run, every projection over batched, and its contrasts, which have other baselines."""
    gap_samples = samples_by_gap(blocks, _all_pairs)
    gaps = _check_gap_controls(
        _gap_table(study, {key: value for key, value in gap_samples.items() if key[-1] == BATCHED})
    )
    contrasts = _gap_table(study, {key: value for key, value in gap_samples.items() if key[-1] != BATCHED})
    return gaps, _check_contrast_controls(contrasts, gaps)


def configuration_key(configuration: Configuration) -> tuple[Any, ...]:
    """Return the values of CONFIG."""
    return configuration.values


def block_key(record: BlockRecord) -> tuple[Any, ...]:
    """Return the values of CONFIG, the workload's name and the pass."""
    return (*configuration_key(record.configuration), record.workload.name, record.pass_)


@cache
def parse_arm_name(name: str) -> dict[str, str]:
    recurrence, _, projection = name.partition("_")
    return {"recurrence": recurrence, "projection": projection}


def batched_pairs(arms: Iterable[str]) -> Iterator[PairNames]:
    """Yield the pairs of every other projection and batched, after the same recurrence."""
    for name in arms:
        recurrence, projection = parse_arm_name(name).values()
        if projection in CONTENDERS or family_of(projection) in CHUNKS:
            yield recurrence, projection, BATCHED, f"{recurrence}_{BATCHED}"


def _contrast_pairs(arms: Iterable[str]) -> Iterator[PairNames]:
    """Yield the pairs whose baseline is not batched.

    T products after the loop over T inside it; what a transformation takes out of the loop over the same; the wrapper's
    form over the framework's own layer; and every projected form over the loop alone.
    """
    for recurrence in LOOPS:
        for projection in ("per_step", "hoisted"):
            yield recurrence, projection, "in_loop", f"{recurrence}_in_loop"
        yield recurrence, "in_loop", OWN, OWN
    yield from none_pairs(arms)


def none_pairs(arms: Iterable[str]) -> Iterator[PairNames]:
    """Yield the pairs of every projected form and the loop alone."""
    for recurrence, projection in itertools.product(LOOPS, ADDED):
        yield recurrence, projection, "none", f"{recurrence}_none"


def _all_pairs(arms: Iterable[str]) -> Iterator[PairNames]:
    """Yield every pair that is compared."""
    return itertools.chain(batched_pairs(arms), _contrast_pairs(arms))


def paired_times(blocks: list[BlockRecord], pairs: Callable[[Iterable[str]], Iterator[PairNames]]) -> PairedTimes:
    """Return nanoseconds a call of contender and baseline in the same rounds, of each process."""
    times: PairedTimes = {}
    pairs_by_names: dict[tuple[str, ...], list[MeasuredPair]] = {}  # most blocks have arms of the same names
    for record in blocks:
        names = tuple(name for name, arm in record.arms.items() if arm.has_times)
        if names not in pairs_by_names:
            pairs_by_names[names] = _measured_pairs(names, pairs)
        if pairs_by_names[names]:
            place = block_key(record)
            per_call = call_times_ns(record, names)
            for pair, name, base in pairs_by_names[names]:
                times.setdefault((*place, *pair), []).append(ProcessTimes(per_call[name], per_call[base], record.node))
    return times


def _measured_pairs(
    names: tuple[str, ...], pairs: Callable[[Iterable[str]], Iterator[PairNames]]
) -> list[MeasuredPair]:
    """Return the pairs whose arms are both among the names."""
    named = [
        ((recurrence, projection, baseline), f"{recurrence}_{projection}", base)
        for recurrence, projection, baseline, base in pairs(names)
    ]
    return [(pair, name, base) for pair, name, base in named if name in names and base in names]


def samples_by_gap(
    blocks: list[BlockRecord], pairs: Callable[[Iterable[str]], Iterator[PairNames]] = batched_pairs
) -> GapSamples:
    """Return the sample of every measured gap, and the median over processes of its rounds."""
    return {
        key: (
            stats.gap_sample([(p.contender, p.baseline) for p in processes], [p.node for p in processes]),
            float(statistics.median(len(p.contender) for p in processes)),
        )
        for key, processes in paired_times(blocks, pairs).items()
    }


def fit_priors(gap_samples: GapSamples) -> dict[str, stats.Prior]:
    """Fit a prior of a gap's variance for each device, because a CPU's variances say nothing of a GPU's."""
    device_samples: dict[str, list[stats.Sample]] = {}
    for key, (sample, _) in gap_samples.items():
        device_samples.setdefault(key[DEVICE], []).append(sample)
    return {device: stats.fit_prior(group) for device, group in device_samples.items()}


def _gap_table(study: Study, gap_samples: GapSamples) -> pd.DataFrame:
    """Return a row for each pair, with its verdict."""
    device_priors = fit_priors(gap_samples)
    rows = []
    for key, (sample, rounds) in gap_samples.items():
        gap = stats.estimate_gap(sample, study.margin)
        row = dict(zip([*GAP_KEYS, "baseline"], key, strict=True)) | {"gap": gap, "processes": gap.processes}
        variances = stats.variance_components(sample, rounds, device_priors[key[DEVICE]])
        row["needs"] = _remaining_processes(gap, variances, rounds, study.target) if variances else math.nan
        row |= {"ratio": gap.ratio, "ci_low": gap.low, "ci_high": gap.high, "rounds": rounds}
        rows.append(row | {"direction": gap.direction})
    frame = pd.DataFrame(rows, columns=[*GAPS, "gap"])
    frame = frame.sort_values([*GAP_KEYS, "baseline"], kind="stable", ignore_index=True)
    frame["verdict"] = frame["verdict"].astype(object)
    swept = frame.workload.isin({point.name for point in study.swept})
    for _, family in frame.groupby([*(frame[name] for name in ENGINE), swept, _question_labels(frame)], sort=False):
        frame.loc[family.index, "verdict"] = stats.verdicts(list(family.gap))
    return frame.drop(columns="gap")


def _remaining_processes(gap: stats.Gap, variances: stats.Variances, rounds: float, target: float) -> int:
    """Return how many more processes of `rounds` rounds bring a gap's interval to ±`target`; 0 where it is there."""
    if stats.half_width(gap.low, gap.high) <= target:
        return 0
    return max(1, stats.required_processes(variances, rounds, target) - gap.processes)


def _question_labels(frame: pd.DataFrame) -> pd.Series:
    """Return the question that each row answers, over which Holm's correction is made.

    The A/A controls are one question. The correction is made within one framework, execution, device and precision,
    and for the sweep apart from the rest.
    """
    is_loop = frame.recurrence.isin(LOOPS)
    question = frame.recurrence.where(~is_loop, "loop") + " " + frame.baseline
    return question.where(frame.contender != TWIN, TWIN)


def _check_gap_controls(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the gaps with a column that says whether the A/A control of their block passed."""
    controls = frame[frame.contender.eq(TWIN)].set_index([k for k in GAP_KEYS if k != "contender"])
    # A 95% interval misses 1 in one control of twenty by chance; those that miss are marked all the same.
    passed = (controls.ci_low <= 1) & (controls.ci_high >= 1)
    keys = frame[[k for k in GAP_KEYS if k != "contender"]].itertuples(index=False, name=None)
    frame["trusted"] = [bool(passed.get(key, default=False)) for key in keys]
    return frame


def _check_contrast_controls(frame: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the contrasts with a column that says whether their A/A controls passed.

    The controls are that of the recurrence, and that of the layer where the layer is the baseline.
    """
    place = [*CONFIG, "workload", "pass", "recurrence"]
    controls = gaps[gaps.contender == TWIN].set_index(place).trusted
    baselines = frame.assign(recurrence=frame.recurrence.where(frame.baseline != OWN, "layer"))
    sides = [
        [bool(controls.get(key, default=False)) for key in side[place].itertuples(index=False, name=None)]
        for side in (frame, baselines)
    ]
    return frame.assign(trusted=[contender and baseline for contender, baseline in zip(*sides, strict=True)])


def is_prototype(frame: pd.DataFrame, reasons: PrototypeReasons) -> pd.Series:
    """Return which rows are a prototype's."""
    keys = zip(frame.framework, frame.execution, frame.recurrence, strict=True)
    return pd.Series([key in reasons for key in keys], index=frame.index, dtype=bool)


def drop_prototypes(blocks: list[BlockRecord], reasons: PrototypeReasons) -> list[BlockRecord]:
    """Return the blocks with only the arms that are no prototype's."""
    return _filter_arms(blocks, lambda key: key not in reasons)


def select_prototypes(blocks: list[BlockRecord], reasons: PrototypeReasons) -> list[BlockRecord]:
    """Return the blocks of executions that have prototypes, with only the arms that are a prototype's."""
    engines = {(framework, execution) for framework, execution, _ in reasons}
    of_engines = [b for b in blocks if (b.configuration.framework, b.configuration.execution) in engines]
    return _filter_arms(of_engines, lambda key: key in reasons)


def _filter_arms(blocks: list[BlockRecord], predicate: Callable[[tuple[str, str, str]], bool]) -> list[BlockRecord]:
    """Return the blocks with only the arms whose (framework, execution, recurrence) satisfies the predicate."""

    def filtered(record: BlockRecord) -> BlockRecord:
        engine = record.configuration.framework, record.configuration.execution
        return record.filter_arms(lambda name: predicate((*engine, parse_arm_name(name)["recurrence"])))

    return [filtered(record) for record in blocks]


def is_included(gaps: pd.DataFrame) -> pd.Series:
    """Return which gaps are included: all but those of a block whose A/A control missed 1."""
    return gaps.trusted | gaps.ci_low.isna()
