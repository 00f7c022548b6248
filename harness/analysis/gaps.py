"""Gaps: the arms of a block compared pair by pair, over its processes. Pure: the same records, the same gaps."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.records.samples import calls_ns
from harness.records.store import Record
from harness.study.parts import BATCHED, LOOPS, OWN, TWIN
from harness.study.study import Study

CONFIG = ["framework", "device", "threads", "execution", "precision"]
ENGINE = ["framework", "execution", "device", "precision"]  # what programs are run by, whatever their threads
ARM = ["recurrence", "projection"]
GAP_KEYS = [*CONFIG, "workload", "pass", "recurrence", "contender"]
GAPS = [
    *GAP_KEYS, "baseline", "ratio", "ci_low", "ci_high", "processes", "rounds", "verdict", "trusted", "needs",
    "direction",
]  # fmt: skip
DEVICE, WORKLOAD = GAP_KEYS.index("device"), GAP_KEYS.index("workload")
CONTENDERS = ("in_loop", "per_step", "bmm", "vmap", "library", "time_distributed", TWIN)
ADDED = ("in_loop", "per_step", BATCHED)  # projections whose costs are told apart from the loop's
Pair = tuple[str, str, str, str]  # recurrence and projection of the contender; the baseline's name, and its arm
Times = dict[tuple[Any, ...], list[tuple[np.ndarray, np.ndarray]]]  # the same keys -> each process's nanoseconds a call
Reasons = dict[tuple[str, str, str], str]  # framework, execution, recurrence of a prototype -> why it is one
Found = dict[tuple[Any, ...], tuple[stats.Sample, float]]  # (*GAP_KEYS' values, baseline) -> its sample, its rounds


def tables_of(blocks: list[Record], study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gaps of a run, every projection against batched; and its contrasts, what is compared with something else."""
    found = samples(blocks, _both)
    gaps = _trusted(_compared(study, {key: of for key, of in found.items() if key[-1] == BATCHED}))
    contrasts = _compared(study, {key: of for key, of in found.items() if key[-1] != BATCHED})
    return gaps, _also_trusted(contrasts, gaps)


def block_key(record: Record) -> tuple[Any, ...]:
    """The values of CONFIG, and the workload and pass."""
    return (*(record[name] for name in CONFIG), record["workload"]["name"], record["pass"])


@cache
def arm_of(name: str) -> dict[str, str]:
    recurrence, _, projection = name.partition("_")
    return {"recurrence": recurrence, "projection": projection}


def _against_batched(arms: Iterable[str]) -> Iterator[Pair]:
    """Every way to project against batched, after the same recurrence."""
    for name in arms:
        recurrence, projection = arm_of(name).values()
        if projection in CONTENDERS:
            yield recurrence, projection, BATCHED, f"{recurrence}_{BATCHED}"


def _otherwise(arms: Iterable[str]) -> Iterator[Pair]:
    """T products after the loop against T inside it; the wrapper's form against the framework's own layer; and every
    form against the loop alone.
    """
    for recurrence in LOOPS:
        yield recurrence, "per_step", "in_loop", f"{recurrence}_in_loop"
        yield recurrence, "in_loop", OWN, OWN
    yield from against_none(arms)


def against_none(arms: Iterable[str]) -> Iterator[Pair]:
    """Every form that is projected against the loop alone."""
    for recurrence, projection in itertools.product(LOOPS, ADDED):
        yield recurrence, projection, "none", f"{recurrence}_none"


def _both(arms: Iterable[str]) -> Iterator[Pair]:
    """Every pair that is compared."""
    return itertools.chain(_against_batched(arms), _otherwise(arms))


def paired(blocks: list[Record], pairs: Callable[[Iterable[str]], Iterator[Pair]]) -> Times:
    """Nanoseconds a call of contender and baseline in the same rounds, a pair of arrays for each process."""
    found: Times = {}
    for record in blocks:
        place = block_key(record)
        per_call = {name: calls_ns(arm) for name, arm in record["arms"].items() if _good(arm)}
        for recurrence, projection, baseline, base in pairs(per_call):
            if (name := f"{recurrence}_{projection}") in per_call and base in per_call:
                found.setdefault((*place, recurrence, projection, baseline), []).append(
                    (per_call[name], per_call[base])
                )
    return found


def samples(blocks: list[Record], pairs: Callable[[Iterable[str]], Iterator[Pair]] = _against_batched) -> Found:
    """A gap's sample and the median of its rounds, for every gap measured."""
    return {
        key: (stats.sample(processes), float(statistics.median(len(times) for times, _ in processes)))
        for key, processes in paired(blocks, pairs).items()
    }


def priors(found: Found) -> dict[str, stats.Prior]:
    """What each device's gaps say of the variance of any one of them: how a CPU's vary says nothing of a GPU's."""
    by: dict[str, list[stats.Sample]] = {}
    for key, (sample, _) in found.items():
        by.setdefault(key[DEVICE], []).append(sample)
    return {device: stats.prior(some) for device, some in by.items()}


def _compared(study: Study, found: Found) -> pd.DataFrame:
    """A row for each pair, with its verdict."""
    before = priors(found)
    rows = []
    for key, (sample, rounds) in found.items():
        gap = stats.gap(sample, study.margin)
        row = dict(zip([*GAP_KEYS, "baseline"], key, strict=True)) | {"gap": gap, "processes": gap.processes}
        known = stats.parts(sample, rounds, before[key[DEVICE]])
        row["needs"] = _more(gap, known, rounds, study.target) if known else math.nan
        row |= {"ratio": gap.ratio, "ci_low": gap.low, "ci_high": gap.high, "rounds": rounds}
        rows.append(row | {"direction": gap.direction})
    frame = pd.DataFrame(rows, columns=[*GAPS, "gap"])
    frame = frame.sort_values([*GAP_KEYS, "baseline"], kind="stable", ignore_index=True)
    frame["verdict"] = frame["verdict"].astype(object)
    swept = frame.workload.isin({point.name for point in study.swept})
    for _, part in frame.groupby([*(frame[name] for name in ENGINE), swept, _question(frame)], sort=False):
        frame.loc[part.index, "verdict"] = stats.verdicts(list(part.gap))
    return frame.drop(columns="gap")


def _more(gap: stats.Gap, known: stats.Variances, rounds: float, target: float) -> int:
    """How many processes of so many rounds bring a gap's interval to ±target, besides its own; none where it is."""
    if stats.half_width(gap.low, gap.high) <= target:
        return 0
    return max(1, stats.processes(known, rounds, target) - gap.processes)


def _question(frame: pd.DataFrame) -> pd.Series:
    """What Holm's correction is over, within one framework, execution, device and precision, and in the sweep or out
    of it: the controls, or gaps that answer one question.
    """
    loops = frame.recurrence.isin(LOOPS)
    named = frame.recurrence.where(~loops, "loop") + " " + frame.baseline
    return named.where(frame.contender != TWIN, TWIN)


def _trusted(frame: pd.DataFrame) -> pd.DataFrame:
    """The gaps, and whether the twin of their block is 1."""
    twins = frame[frame.contender.eq(TWIN)].set_index([k for k in GAP_KEYS if k != "contender"])
    # A 95% interval misses 1 in one twin of twenty by chance; the ones that miss are marked all the same.
    holds = (twins.ci_low <= 1) & (twins.ci_high >= 1)
    keys = frame[[k for k in GAP_KEYS if k != "contender"]].itertuples(index=False, name=None)
    frame["trusted"] = [bool(holds.get(key, default=False)) for key in keys]
    return frame


def _also_trusted(frame: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Contrasts, and whether the twins are 1 of the recurrence, and of the layer where that is the baseline."""
    place = [*CONFIG, "workload", "pass", "recurrence"]
    twins = gaps[gaps.contender == TWIN].set_index(place).trusted
    own = frame.assign(recurrence=frame.recurrence.where(frame.baseline != OWN, "layer"))
    sides = [
        [bool(twins.get(key, default=False)) for key in side[place].itertuples(index=False, name=None)]
        for side in (frame, own)
    ]
    return frame.assign(trusted=[one and other for one, other in zip(*sides, strict=True)])


def of_prototypes(frame: pd.DataFrame, reasons: Reasons) -> pd.Series:
    """Which rows are a prototype's."""
    keys = zip(frame.framework, frame.execution, frame.recurrence, strict=True)
    return pd.Series([key in reasons for key in keys], index=frame.index, dtype=bool)


def without_prototypes(blocks: list[Record], reasons: Reasons) -> list[Record]:
    """The blocks with the arms alone that are no prototype's."""
    return _with_arms(blocks, lambda key: key not in reasons)


def of_prototypes_alone(blocks: list[Record], reasons: Reasons) -> list[Record]:
    """The blocks with the arms alone that are a prototype's."""
    return _with_arms(blocks, lambda key: key in reasons)


def _with_arms(blocks: list[Record], wanted: Callable[[tuple[str, str, str]], bool]) -> list[Record]:
    """The blocks with the arms whose framework, execution and recurrence are wanted."""
    made = []
    for record in blocks:
        place = record["framework"], record["execution"]
        arms = {name: arm for name, arm in record["arms"].items() if wanted((*place, arm_of(name)["recurrence"]))}
        made.append(record | {"arms": arms})
    return made


def usable(gaps: pd.DataFrame) -> pd.Series:
    """Which gaps may be counted: not those of a block whose A/A control missed 1."""
    return gaps.trusted | gaps.ci_low.isna()


def _good(arm: dict[str, Any]) -> bool:
    return arm["status"] == "ok" and bool(arm["samples_ns"])
