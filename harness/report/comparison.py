"""The same gap in several runs and on several devices, side by side.

Every ratio, interval and verdict is that of its own run; none is made of several.
"""

from collections import Counter
from functools import partial
from itertools import combinations, groupby
from typing import Any, NamedTuple

import pandas as pd

from harness.analysis.gaps import usable
from harness.analysis.sample_size import HEADLINE
from harness.analysis.stats import FASTER, INCONCLUSIVE, SLOWER
from harness.analysis.tables import Tables
from harness.report import figures
from harness.report.figures import Figures, program
from harness.report.markdown import Row, ratio, sizes, table
from harness.study.parts import LOOPS

AGREE, OPPOSITE, DIFFER, UNDECIDED, LEFT_OUT = "agree", "opposite", "differ", "undecided", "left out ⚠"
RELATIONS = (AGREE, OPPOSITE, DIFFER, UNDECIDED, LEFT_OUT)


class Gap(NamedTuple):
    """What is compared: the same workload, sizes included, in the same program."""

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
        return program(self._asdict())


class Column(NamedTuple):
    """Where it was measured. Threads are a CPU's: on a GPU the host's are no axis, so that it has one column."""

    label: str
    device: str
    threads: int

    @property
    def place(self) -> tuple[str, str]:
        """Run and device."""
        return self.label, self.device

    @property
    def name(self) -> str:
        place = f"{self.label} {self.device}".strip()
        return f"{place}×{self.threads}" if self.device == "cpu" else place


Compared = dict[Gap, dict[Column, Row]]  # rows of the runs' own gaps, and whether each is `kept`, that is counted


class Part(NamedTuple):
    """The gaps of one workload and pass, and the name of their figure, if they have one."""

    title: str
    figure: str
    gaps: Compared


def both_devices(tables: Tables) -> bool:
    """Whether one run has gaps of a CPU and of a GPU."""
    return bool(tables.gaps.device.nunique() > 1)


def compared(runs: dict[str, Tables]) -> Compared:
    """The gaps of in_loop and per_step that at least two runs or devices have; `runs` by their labels."""
    found: Compared = {}
    for label, tables in runs.items():
        of = {workload.name: sizes(workload.model_dump()) for workload in tables.study.workloads}
        gaps = tables.gaps[tables.gaps.contender.isin(HEADLINE)]
        for row in gaps.assign(kept=usable(gaps)).to_dict("records"):
            gap = Gap(row["workload"], of[row["workload"]], row["pass"], *(row[name] for name in Gap._fields[3:]))
            found.setdefault(gap, {})[Column(label, row["device"], row["threads"])] = row
    return {gap: by for gap, by in sorted(found.items()) if len({column.place for column in by}) > 1}


def everything(found: Compared) -> Row:
    """The variables of the section."""
    columns = _columns(found)
    return {
        "title": "CPU and GPU" if len({column.device for column in columns}) > 1 else "Side by side",
        "summary": summary(found),
        "agreement": agreement(found),
        "opposite": opposite(found),
        "parts": [
            {"title": part.title, "figure": part.figure, "table": side_by_side(part.gaps)} for part in parts(found)
        ],
    }


def drawings(found: Compared, margins: set[float]) -> Figures:
    """The figure of every workload and pass; the margin is in it where all runs have the same."""
    margin = next(iter(margins)) if len(margins) == 1 else None
    return {
        part.figure: partial(figures.sides, _drawn(part.gaps), part.title, margin)
        for part in parts(found)
        if part.figure
    }


def parts(found: Compared) -> list[Part]:
    """The gaps by workload and pass."""
    made = []
    for number, ((workload, text, pass_), gaps) in enumerate(groupby(found, key=lambda gap: gap[:3]), 1):
        mine = {gap: found[gap] for gap in gaps}
        drawn = any(gap.recurrence in LOOPS for gap in mine)
        figure = f"compared-{number}-{workload}-{pass_}" if drawn else ""
        made.append(Part(f"{workload}, {pass_} ({text})", figure, mine))
    return made


def _drawn(gaps: Compared) -> pd.DataFrame:
    """What figures.sides draws: the gaps of loops of ours."""
    rows: list[dict[str, Any]] = [
        {"program": gap.program, "contender": gap.contender, "column": column.name, "place": column.place}
        | {name: row[name] for name in ("ratio", "ci_low", "ci_high", "kept")}
        for gap, by in gaps.items()
        if gap.recurrence in LOOPS
        for column, row in sorted(by.items())
    ]
    return pd.DataFrame(rows)


def _columns(found: Compared) -> list[Column]:
    return sorted({column for by in found.values() for column in by})


def relation(one: Row, other: Row) -> str:
    """How two verdicts on the same gap stand to each other."""
    verdicts = {one["verdict"], other["verdict"]}
    if not (one["kept"] and other["kept"]):
        return LEFT_OUT
    if INCONCLUSIVE in verdicts:
        return UNDECIDED
    if len(verdicts) == 1:
        return AGREE
    return OPPOSITE if verdicts == {SLOWER, FASTER} else DIFFER


def _pairs(columns: list[Column]) -> list[tuple[Column, Column]]:
    """Every two columns of different runs or devices; of two CPUs one thread with one, several with several."""
    return [
        (one, other)
        for one, other in combinations(columns, 2)
        if one.place != other.place
        and (one.device != other.device or one.device != "cpu" or (one.threads == 1) == (other.threads == 1))
    ]


def _flipped(by: dict[Column, Row]) -> bool:
    """Whether a gap's sign changes: slower in one column and faster in another."""
    return any(relation(by[one], by[other]) == OPPOSITE for one, other in _pairs(sorted(by)))


def summary(found: Compared) -> str:
    """Whether the sign of a gap changes from one run or device to another, in a sentence."""
    if not found:
        return "No gap of the same workload and program was measured in two runs or on two devices."
    flipped = [gap.contender for gap, by in found.items() if _flipped(by)]
    each = " and ".join(f"{flipped.count(contender)} of {contender}" for contender in HEADLINE)
    return (
        f"{len(found)} gaps (workload, pass, framework, execution, recurrence, precision, contender) were measured in "
        f"at least two runs or on two devices. **In {len(flipped)} of them the sign changes** ({each}): the contender "
        "is slower than projecting once in one, and faster in another."
    )


def agreement(found: Compared) -> str:
    """For every two columns, how often their verdicts agree, and how far their ratios are apart."""
    rows = []
    for one, other in _pairs(_columns(found)):
        shared = [(by[one], by[other]) for by in found.values() if one in by and other in by]
        if not shared:
            continue
        count = Counter(relation(*both) for both in shared)
        apart = [b["ratio"] / a["ratio"] for a, b in shared if a["kept"] and b["kept"]]
        seen = f"{min(apart):.2f} to {max(apart):.2f}" if apart else "–"
        rows.append([one.name, other.name, len(shared), *(count[name] for name in RELATIONS), seen])
    return table(["first", "second", "gaps", *RELATIONS, "second's ratio / first's"], rows)


def opposite(found: Compared) -> str:
    """The gaps whose sign changes; nothing when there are none."""
    rows = [
        [f"{gap.workload}, {gap.pass_}", gap.program, gap.contender, _those(by, SLOWER), _those(by, FASTER)]
        for gap, by in found.items()
        if _flipped(by)
    ]
    return table(["", "", "contender", "slower on", "faster on"], rows) if rows else ""


def _those(by: dict[Column, Row], verdict: str) -> str:
    """The columns that say so, with their ratios."""
    return "; ".join(
        f"{column.name}: {row['ratio']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        for column, row in sorted(by.items())
        if row["kept"] and row["verdict"] == verdict
    )


def side_by_side(gaps: Compared) -> str:
    """A row for each gap, a column for each run, device and thread count."""
    columns = _columns(gaps)
    rows = [
        [gap.program, gap.contender, *(_said(by[column]) if column in by else "–" for column in columns)]
        for gap, by in gaps.items()
    ]
    return table(["", "contender", *(column.name for column in columns)], rows)


def _said(row: Row) -> str:
    return ratio(row) if row["kept"] else f"{ratio(row)} ⚠"
