"""Repeat a run's study, and count how often the two runs agree, gap by gap.

SECOND is another run's folder. If it holds no records yet, the study of FIRST is measured into it, with the same
budget. Every gap that both runs include (no A/A control of its block missed 1) is compared between them:

    beyond: its log ratios differ at 95% by Welch's t over the processes of both; one in twenty if intervals hold
    apart: its two intervals do not overlap
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

from harness.analysis.gaps import GAP_KEYS, is_included
from harness.analysis.loading import read_tables
from harness.analysis.sample_size import HEADLINE
from harness.analysis.stats import FASTER, SLOWER, welch_test
from harness.analysis.tables import Tables
from harness.cli import streams
from harness.errors import UsageError
from harness.records import gates
from harness.records.store import FILE, PACKED
from harness.report import appendix, summary
from harness.run import session
from harness.study.parts import TWIN

GROUPS = ("in_loop, per_step", "other projections", "A/A controls")


def compare_gaps(first: Tables, second: Tables) -> pd.DataFrame:
    """Return a row for each gap that both runs include with an interval, and how its two measurements compare.

    Raises UsageError where a workload has different sizes in the two runs.
    """
    workloads = {workload.name: workload for workload in [*first.study.workloads, *first.study.swept]}
    for workload in [*second.study.workloads, *second.study.swept]:
        if workloads.get(workload.name, workload) != workload:
            raise UsageError(f"workload {workload.name} has other sizes in the two runs")
    pairs = _gaps_with_interval(first).merge(
        _gaps_with_interval(second), on=[*GAP_KEYS, "baseline"], suffixes=("", "_again")
    )
    halves = [np.log(pairs[f"ci_high{run}"] / pairs[f"ci_low{run}"]) / 2 for run in ("", "_again")]
    beyond = welch_test(np.log(pairs.ratio_again / pairs.ratio), halves, (pairs.processes, pairs.processes_again))
    group = pairs.contender.map(lambda name: GROUPS[0 if name in HEADLINE else 2 if name == TWIN else 1])
    verdicts = [frozenset(pair) for pair in zip(pairs.verdict, pairs.verdict_again, strict=True)]
    return pairs.assign(
        group=group,
        beyond=beyond,
        apart=(pairs.ci_low > pairs.ci_high_again) | (pairs.ci_low_again > pairs.ci_high),
        opposite=[pair == {SLOWER, FASTER} for pair in verdicts],
        same_verdict=[len(pair) == 1 for pair in verdicts],
    )


def _gaps_with_interval(tables: Tables) -> pd.DataFrame:
    """Return the gaps that have an interval and are included, and all controls that have one."""
    gaps = pd.concat([part for part in (tables.gaps, tables.swept) if not part.empty] or [tables.gaps])
    return gaps[gaps.ci_low.notna() & (is_included(gaps) | (gaps.contender == TWIN))]


def count_agreement(runs: dict[str, Tables]) -> dict[str, Any]:
    """Count how often two runs agree, for each group of gaps, and list what differs between the runs.

    `runs` maps two labels to the runs' tables.
    """
    first, second = runs.values()
    frame = compare_gaps(first, second)
    counts = ("beyond", "apart", "opposite", "same_verdict")
    groups = {
        name: {"gaps": len(part)} | {count: int(part[count].sum()) for count in counts}
        for name in GROUPS
        if len(part := frame[frame.group == name])
    }
    facts = {label: _run_facts(tables) for label, tables in runs.items()}
    return {"runs": facts, "groups": groups, "other": run_differences(first, second)}


def run_differences(first: Tables, second: Tables) -> list[str]:
    """List what differs between two runs besides chance, see gates.header_differences; "memory" is the allocator."""
    settings = [name for name in ("memory", "library") if getattr(first.study, name) != getattr(second.study, name)]
    return gates.header_differences(first.header, second.header) + settings


def _run_facts(tables: Tables) -> dict[str, str]:
    """Return the code's hash, and when the first and the last block began."""
    began, ended = summary.measurement_span(tables)
    return {"code": tables.header.basis.code.hash, "began": began, "ended": ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, metavar="FIRST", help="a run's folder")
    parser.add_argument("second", type=Path, metavar="SECOND", help="another's, or where the study is measured again")
    parser.add_argument("--resume", action="store_true", help="resume the second measurement")
    arguments = parser.parse_args()
    first = read_tables(arguments.first)
    if arguments.first.resolve() == arguments.second.resolve():
        raise UsageError(f"{arguments.second} is the same run")
    if arguments.resume or not any((arguments.second / name).exists() for name in (FILE, PACKED)):
        session.run(
            first.study,
            arguments.second,
            arguments.resume,
            f"python scripts/repeat.py {arguments.first.name} {arguments.second.name}",
        )
    runs = {
        arguments.first.resolve().name: first,
        arguments.second.resolve().name: read_tables(arguments.second),
    }
    if len(runs) < 2:
        raise UsageError("the folders have one name: what is said of two runs needs two")
    result = count_agreement(runs)
    print(appendix.repeat_summary(result), file=sys.stderr)
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    streams.leave(main)
