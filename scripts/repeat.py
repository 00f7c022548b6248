"""Does another run of a study say the same? How often two runs of it agree, gap by gap.

SECOND is another run's folder; where there is none yet, the study of FIRST is measured into it, with the budget that
that one had. Every gap that both runs have and count (no A/A control of its block missed 1) is compared with itself:

    beyond: its log ratios differ at 95% by Welch's t over the processes of both; one in twenty where intervals hold
    apart: its intervals do not overlap
    opposite: one run calls it slower, the other faster

The result goes to stdout as JSON, and into the report when put into a run's folder as repeat.json:

    python scripts/repeat.py runs/mine runs/again > runs/again/repeat.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import report
from harness.analysis.gaps import GAP_KEYS, usable
from harness.analysis.sample_size import HEADLINE
from harness.analysis.stats import FASTER, SLOWER, welch
from harness.analysis.tables import Tables
from harness.cli import streams
from harness.errors import UsageError
from harness.records import gates
from harness.records.store import FILE, PACKED
from harness.report import appendix, words
from harness.run import session
from harness.study.parts import TWIN

GROUPS = ("in_loop, per_step", "other projections", "A/A controls")


def compared(first: Tables, second: Tables) -> pd.DataFrame:
    """A row for each gap that both runs have an interval of and count, and how its two measurements stand.

    Raises UsageError where a workload has other sizes in the two.
    """
    known = {workload.name: workload for workload in [*first.study.workloads, *first.study.swept]}
    for workload in [*second.study.workloads, *second.study.swept]:
        if known.get(workload.name, workload) != workload:
            raise UsageError(f"workload {workload.name} has other sizes in the two runs")
    both = _intervals(first).merge(_intervals(second), on=[*GAP_KEYS, "baseline"], suffixes=("", "_again"))
    halves = [np.log(both[f"ci_high{run}"] / both[f"ci_low{run}"]) / 2 for run in ("", "_again")]
    differ = welch(np.log(both.ratio_again / both.ratio), halves, (both.processes, both.processes_again))
    group = both.contender.map(lambda name: GROUPS[0 if name in HEADLINE else 2 if name == TWIN else 1])
    verdicts = [frozenset(pair) for pair in zip(both.verdict, both.verdict_again, strict=True)]
    return both.assign(
        group=group,
        beyond=differ,
        apart=(both.ci_low > both.ci_high_again) | (both.ci_low_again > both.ci_high),
        opposite=[pair == {SLOWER, FASTER} for pair in verdicts],
        same_verdict=[len(pair) == 1 for pair in verdicts],
    )


def _intervals(tables: Tables) -> pd.DataFrame:
    gaps = pd.concat([part for part in (tables.gaps, tables.swept) if not part.empty] or [tables.gaps])
    return gaps[gaps.ci_low.notna() & (usable(gaps) | (gaps.contender == TWIN))]


def agreement(runs: dict[str, Tables]) -> dict[str, Any]:
    """How often two runs, by their labels, agree: counts for each group of gaps; and in what they are not alike."""
    first, second = runs.values()
    frame = compared(first, second)
    counts = ("beyond", "apart", "opposite", "same_verdict")
    groups = {
        name: {"gaps": len(part)} | {count: int(part[count].sum()) for count in counts}
        for name in GROUPS
        if len(part := frame[frame.group == name])
    }
    facts = {label: _facts(tables) for label, tables in runs.items()}
    return {"runs": facts, "groups": groups, "other": unlike(first, second)}


def unlike(first: Tables, second: Tables) -> list[str]:
    """In what two runs are not alike, besides chance: what gates.unlike names, and how their workers took memory."""
    return gates.unlike(first.heading, second.heading) + ["memory"] * (first.study.memory != second.study.memory)


def _facts(tables: Tables) -> dict[str, str]:
    began, ended = words.measured(tables)
    return {"code": tables.heading["basis"]["code"]["hash"], "began": began, "ended": ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, metavar="FIRST", help="a run's folder")
    parser.add_argument("second", type=Path, metavar="SECOND", help="another's, or where the study is measured again")
    parser.add_argument("--resume", action="store_true", help="go on with measuring it again")
    given = parser.parse_args()
    first = report.tables(given.first)
    if given.first.resolve() == given.second.resolve():
        raise UsageError(f"{given.second} is the same run")
    if given.resume or not any((given.second / name).exists() for name in (FILE, PACKED)):
        session.run(
            first.study, given.second, given.resume, f"python scripts/repeat.py {given.first.name} {given.second.name}"
        )
    runs = {given.first.resolve().name: first, given.second.resolve().name: report.tables(given.second)}
    if len(runs) < 2:
        raise UsageError("the folders have one name: what is said of two runs needs two")
    found = agreement(runs)
    print(appendix.repeated(found), file=sys.stderr)
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    streams.leave(main)
