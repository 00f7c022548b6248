"""The same gap in several runs and on several devices, side by side.

Every ratio, interval and verdict is that of a single run; nothing is pooled over runs.
"""

from collections import Counter
from functools import partial
from itertools import combinations, groupby
from typing import Any, NamedTuple

import pandas as pd

from harness.analysis.gaps import is_included
from harness.analysis.sample_size import HEADLINE
from harness.analysis.stats import FASTER, INCONCLUSIVE, SLOWER
from harness.analysis.tables import Tables
from harness.report import figures
from harness.report.figures import Figures, program_name
from harness.report.markdown import Row, ratio, sizes, table
from harness.study.study import LOOPS

AGREE, OPPOSITE, DIFFER, UNDECIDED, LEFT_OUT = "agree", "opposite", "differ", "undecided", "left out ⚠"
RELATIONS = (AGREE, OPPOSITE, DIFFER, UNDECIDED, LEFT_OUT)


class GapKey(NamedTuple):
    """The key of a comparison: a workload, including its sizes, and a program."""

    workload: str
    sizes: str
    pass_: str
    framework: str
    execution: str
    recurrence: str
    precision: str
    contender: str

    @property
    def program(self) -> str:
        return program_name(self._asdict())


class Column(NamedTuple):
    """The run, device and thread count that a gap was measured with.

    Thread counts are told apart only on a CPU: a GPU has one column, whatever the host's threads.
    """

    label: str
    device: str
    threads: int

    @property
    def place(self) -> tuple[str, str]:
        """The run's label and the device."""
        return self.label, self.device

    @property
    def name(self) -> str:
        place = f"{self.label} {self.device}".strip()
        return f"{place}×{self.threads}" if self.device == "cpu" else place


ComparedGaps = dict[GapKey, dict[Column, Row]]  # rows of the runs' gaps; `kept` says whether a row is included


class GapGroup(NamedTuple):
    """The gaps of one workload and pass, with their figure's name (empty where they have none)."""

    title: str
    figure: str
    gaps: ComparedGaps


def has_both_devices(tables: Tables) -> bool:
    """Return whether a run has gaps on both a CPU and a GPU."""
    return bool(tables.gaps.device.nunique() > 1)


def shared_gaps(runs: dict[str, Tables]) -> ComparedGaps:
    """Return the gaps of in_loop and per_step that at least two runs or devices have.

    `runs` maps a run's label to its tables.
    """
    gaps: ComparedGaps = {}
    for label, tables in runs.items():
        sizes_by_workload = {workload.name: sizes(workload.model_dump()) for workload in tables.study.workloads}
        frame = tables.gaps[tables.gaps.contender.isin(HEADLINE)]
        for row in frame.assign(kept=is_included(frame)).to_dict("records"):
            gap = GapKey(
                row["workload"],
                sizes_by_workload[row["workload"]],
                row["pass"],
                *(row[name] for name in GapKey._fields[3:]),
            )
            gaps.setdefault(gap, {})[Column(label, row["device"], row["threads"])] = row
    return {
        gap: measurements
        for gap, measurements in sorted(gaps.items())
        if len({column.place for column in measurements}) > 1
    }


def context(gaps: ComparedGaps) -> Row:
    """Return the section's template variables."""
    columns = _columns(gaps)
    return {
        "title": "CPU and GPU" if len({column.device for column in columns}) > 1 else "Side by side",
        "summary": summary(gaps),
        "agreement": agreement_table(gaps),
        "opposite": sign_change_table(gaps),
        "parts": [
            {"title": part.title, "figure": part.figure, "table": ratio_table(part.gaps)} for part in group_gaps(gaps)
        ],
    }


def drawings(gaps: ComparedGaps, margins: set[float]) -> Figures:
    """Return a figure for every workload and pass; it shows the margin where all runs have the same."""
    margin = next(iter(margins)) if len(margins) == 1 else None
    return {
        part.figure: partial(figures.draw_side_by_side, _figure_rows(part.gaps), part.title, margin)
        for part in group_gaps(gaps)
        if part.figure
    }


def group_gaps(gaps: ComparedGaps) -> list[GapGroup]:
    """Group the gaps by workload and pass."""
    sections = []
    for number, ((workload, text, pass_), group) in enumerate(groupby(gaps, key=lambda gap: gap[:3]), 1):
        members = {gap: gaps[gap] for gap in group}
        in_loops = any(gap.recurrence in LOOPS for gap in members)
        figure = f"compared-{number}-{workload}-{pass_}" if in_loops else ""
        sections.append(GapGroup(f"{workload}, {pass_} ({text})", figure, members))
    return sections


def _figure_rows(gaps: ComparedGaps) -> pd.DataFrame:
    """Return the rows that figures.sides draws: the gaps of our own loops."""
    rows: list[dict[str, Any]] = [
        {"program": gap.program, "contender": gap.contender, "column": column.name, "place": column.place}
        | {name: row[name] for name in ("ratio", "ci_low", "ci_high", "kept")}
        for gap, measurements in gaps.items()
        if gap.recurrence in LOOPS
        for column, row in sorted(measurements.items())
    ]
    return pd.DataFrame(rows)


def _columns(gaps: ComparedGaps) -> list[Column]:
    return sorted({column for measurements in gaps.values() for column in measurements})


def relation(first: Row, second: Row) -> str:
    """Return how two runs' verdicts on the same gap relate: one of RELATIONS."""
    verdicts = {first["verdict"], second["verdict"]}
    if not (first["kept"] and second["kept"]):
        return LEFT_OUT
    if INCONCLUSIVE in verdicts:
        return UNDECIDED
    if len(verdicts) == 1:
        return AGREE
    return OPPOSITE if verdicts == {SLOWER, FASTER} else DIFFER


def _column_pairs(columns: list[Column]) -> list[tuple[Column, Column]]:
    """Return all pairs of columns of different runs or devices.

    Columns of two CPUs are paired only where both have one thread, or both have several.
    """
    return [
        (first, second)
        for first, second in combinations(columns, 2)
        if first.place != second.place
        and (first.device != second.device or first.device != "cpu" or (first.threads == 1) == (second.threads == 1))
    ]


def _changes_sign(measurements: dict[Column, Row]) -> bool:
    """Return whether a gap's sign changes: it is slower in one column and faster in another."""
    return any(
        relation(measurements[first], measurements[second]) == OPPOSITE
        for first, second in _column_pairs(sorted(measurements))
    )


def summary(gaps: ComparedGaps) -> str:
    """Summarise how many gaps change their sign from one run or device to another."""
    if not gaps:
        return "No gap of the same workload and program was measured in two runs or on two devices."
    contenders = [gap.contender for gap, measurements in gaps.items() if _changes_sign(measurements)]
    listing = " and ".join(f"{contenders.count(contender)} of {contender}" for contender in HEADLINE)
    return (
        f"{len(gaps)} gaps (workload, pass, framework, execution, recurrence, precision, contender) were measured in "
        f"at least two runs or on two devices. **In {len(contenders)} of them the sign changes** ({listing}): the "
        "contender is slower than projecting once in one, and faster in another."
    )


def agreement_table(gaps: ComparedGaps) -> str:
    """Tabulate, for each pair of columns, how often verdicts agree and the range of the quotients of their ratios."""
    rows = []
    for first, second in _column_pairs(_columns(gaps)):
        shared = [
            (measurements[first], measurements[second])
            for measurements in gaps.values()
            if first in measurements and second in measurements
        ]
        if not shared:
            continue
        count = Counter(relation(*pair) for pair in shared)
        quotients = [b["ratio"] / a["ratio"] for a, b in shared if a["kept"] and b["kept"]]
        span = f"{min(quotients):.2f} to {max(quotients):.2f}" if quotients else "–"
        rows.append([first.name, second.name, len(shared), *(count[name] for name in RELATIONS), span])
    return table(["first", "second", "gaps", *RELATIONS, "second's ratio / first's"], rows)


def sign_change_table(gaps: ComparedGaps) -> str:
    """Tabulate the gaps whose sign changes; return an empty string where there are none."""
    rows = [
        [
            f"{gap.workload}, {gap.pass_}",
            gap.program,
            gap.contender,
            _columns_with_verdict(measurements, SLOWER),
            _columns_with_verdict(measurements, FASTER),
        ]
        for gap, measurements in gaps.items()
        if _changes_sign(measurements)
    ]
    return table(["", "", "contender", "slower on", "faster on"], rows) if rows else ""


def _columns_with_verdict(measurements: dict[Column, Row], verdict: str) -> str:
    """List the included columns with this verdict, with their ratios and intervals."""
    return "; ".join(
        f"{column.name}: {row['ratio']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        for column, row in sorted(measurements.items())
        if row["kept"] and row["verdict"] == verdict
    )


def ratio_table(gaps: ComparedGaps) -> str:
    """Tabulate the ratios: a row for each gap, a column for each run, device and thread count."""
    columns = _columns(gaps)
    rows = [
        [
            gap.program,
            gap.contender,
            *(_ratio_cell(measurements[column]) if column in measurements else "–" for column in columns),
        ]
        for gap, measurements in gaps.items()
    ]
    return table(["", "contender", *(column.name for column in columns)], rows)


def _ratio_cell(row: Row) -> str:
    return ratio(row) if row["kept"] else f"{ratio(row)} ⚠"
