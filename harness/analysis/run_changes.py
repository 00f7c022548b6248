"""What changed between two runs: the gaps and times that differ beyond their joint interval.

A change is b over a. The two runs' processes are independent, so its interval and p-value are Welch's
(harness.analysis.stats), and the p-values are Holm-corrected over all gaps compared, and over all times compared. Only
workloads of the same name and sizes are compared, and only what both measured in two processes or more. Pure: the same
runs give the same changes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.analysis.gaps import ARM, GAP_KEYS, is_included
from harness.analysis.stats import LEVEL
from harness.analysis.tables import Tables
from harness.study.configuration import CONFIG
from harness.study.parts import TWIN

GAP, TIME = "gap", "time"  # kinds of what is compared
PROGRAM = [*CONFIG, "workload", "pass", *ARM]
CHANGES = ["kind", *GAP_KEYS, "baseline", "a", "b", "change", "ci_low", "ci_high", "p", "changed"]
LEAST_HALF = 1e-9  # of an interval where all processes agree to the last digit
OTHER_MACHINES = "the machines differ, and times mean nothing across machines"


@dataclass(frozen=True)
class Agreement:
    """How far two runs of the same agree: of `compared` gaps, in how many no change is shown at 95%, uncorrected.

    If nothing differs, that is 95% of them. `low` and `high`: the share's 95% interval (Clopper and Pearson).
    `opposite`: gaps that are longer than 1 in one run and shorter in the other.
    """

    compared: int
    agreeing: int
    opposite: int

    @property
    def interval(self) -> tuple[float, float, float]:
        """Return the share that agrees, with its interval; NaN where nothing was compared."""
        if not self.compared:
            return float("nan"), float("nan"), float("nan")
        return stats.rate_interval(self.agreeing, self.compared)


@dataclass(frozen=True)
class RunChanges:
    """Two runs compared. `changes` has the columns CHANGES. `appeared` and `gone`: cells that one alone measured.

    `environment`: what differs in machine, versions, code and settings -> the values of both. `no_times` says why times
    were not compared; "" where they were.
    """

    changes: pd.DataFrame
    appeared: list[str]
    gone: list[str]
    environment: dict[str, tuple[str, str]]
    agreement: Agreement
    no_times: str

    def larger_than(self, limit: float) -> pd.DataFrame:
        """Return the changes that are shown and larger than a limit, a fraction such as 0.05, in either direction."""
        frame = self.changes[self.changes.changed]
        return frame[np.abs(np.log(frame.change)) > np.log1p(limit)]


def run_changes(a: Tables, b: Tables) -> RunChanges:
    """Compare two runs."""
    environment = _environment(a, b)
    no_times = OTHER_MACHINES if any(name.startswith("machine: ") for name in environment) else ""
    shared = [workload.name for workload in a.study.workloads if workload in b.study.workloads]
    gap_changes = _changes(GAP, [_gaps(tables, shared) for tables in (a, b)], [*GAP_KEYS, "baseline"])
    frames = [gap_changes]
    if not no_times:
        frames.append(_changes(TIME, [_times(tables, shared) for tables in (a, b)], PROGRAM))
    changes = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    changes["changed"] = changes.changed.astype(bool)  # a frame without rows has no type of its own
    cells = [_cells(tables) for tables in (a, b)]
    return RunChanges(
        changes.reindex(columns=CHANGES),
        [cell for cell in cells[1] if cell not in cells[0]],
        [cell for cell in cells[0] if cell not in cells[1]],
        environment,
        _agreement(gap_changes),
        no_times,
    )


def _gaps(tables: Tables, workloads: list[str]) -> pd.DataFrame:
    """Return a run's gaps and contrasts with an interval, but for the A/A controls and what they do not let count."""
    frames = [frame for frame in (tables.gaps, tables.prototypes, tables.contrasts) if len(frame)]
    if not frames:
        return tables.gaps
    frame = pd.concat(frames, ignore_index=True)
    return frame[is_included(frame) & frame.ci_low.notna() & frame.contender.ne(TWIN) & frame.workload.isin(workloads)]


def _times(tables: Tables, workloads: list[str]) -> pd.DataFrame:
    """Return a run's programs with the geometric mean of their processes' median calls, in seconds."""
    times = tables.times[tables.times.median_s.notna() & tables.times.workload.isin(workloads)]
    times = times[times.projection != TWIN]
    rows = []
    for keys, part in times.groupby(PROGRAM, sort=True):
        logs = stats.node_means(np.log(part.median_s).tolist(), [tables.node_of[int(p)] for p in part.process])
        mean, low, high = stats.mean_interval(logs)
        rows.append((*keys, *np.exp([mean, low, high]), len(logs)))
    return pd.DataFrame(rows, columns=[*PROGRAM, "ratio", "ci_low", "ci_high", "processes"]).dropna(subset="ci_low")


def _changes(kind: str, frames: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """Return the changes of one kind: a row for each place that both runs have."""
    wanted = [*keys, "ratio", "ci_low", "ci_high", "processes"]
    pairs = frames[0][wanted].merge(frames[1][wanted], on=keys, suffixes=("_a", "_b"))
    if pairs.empty:
        return pd.DataFrame(columns=CHANGES)
    halves = [np.log(pairs[f"ci_high_{run}"] / pairs[f"ci_low_{run}"]).clip(lower=LEAST_HALF) / 2 for run in "ab"]
    change = np.log(pairs.ratio_b / pairs.ratio_a)
    half, p = stats.welch_interval(change, halves, (pairs.processes_a, pairs.processes_b))
    frame = pairs[keys].assign(
        kind=kind,
        a=pairs.ratio_a,
        b=pairs.ratio_b,
        change=np.exp(change),
        ci_low=np.exp(change - half),
        ci_high=np.exp(change + half),
        p=stats.holm_adjust(list(p)),
    )
    frame["changed"] = frame.p <= LEVEL
    return frame.rename(columns={"projection": "contender"}).reindex(columns=CHANGES)


def _agreement(gaps: pd.DataFrame) -> Agreement:
    """Return how far the gaps of two runs agree."""
    agreeing = (gaps.ci_low <= 1) & (gaps.ci_high >= 1)
    opposite = ((gaps.a > 1) != (gaps.b > 1)) & ~agreeing
    return Agreement(len(gaps), int(agreeing.sum()), int(opposite.sum()))


def _cells(tables: Tables) -> list[str]:
    """Return the programs that a run has times of, in order, in words."""
    measured = tables.times[tables.times.median_s.notna()]
    names = [*CONFIG, "workload", "pass", *ARM]
    return list(dict.fromkeys(" ".join(map(str, row)) for row in measured[names].itertuples(index=False)))


def _environment(a: Tables, b: Tables) -> dict[str, tuple[str, str]]:
    """Return what differs between the environments of two runs, in order -> the values of both."""
    facts = [_facts(tables) for tables in (a, b)]
    names = list(dict.fromkeys([*facts[0], *facts[1]]))
    values = {name: (facts[0].get(name, "–"), facts[1].get(name, "–")) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def _facts(tables: Tables) -> dict[str, str]:
    """Return the facts of a run's environment, in words."""
    basis, study = tables.header.basis, tables.study
    facts: dict[str, Any] = {f"machine: {name}": value for name, value in basis.machine.items()}
    for framework, versions in basis.versions.items():
        facts |= {f"{framework}: {package}": version for package, version in versions.items()}
    facts |= {"code: commit": basis.code.commit, "code: hash": basis.code.hash}
    facts |= {f"study: {name}": value for name, value in study.model_dump(mode="json").items() if name != "workloads"}
    facts |= {f"workload: {w.name}": w.model_dump(mode="json") for w in study.workloads}
    return {name: str(value) for name, value in facts.items()}
