"""The gaps, workload by workload: the figures and the tables behind them."""

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.analysis.gaps import CONFIG, CONTENDERS
from harness.analysis.sample_size import HEADLINE
from harness.analysis.stats import UNKNOWN, half_width
from harness.analysis.tables import Tables
from harness.report import causes
from harness.report.figures import ALONE, LOOP, Drawn, group_of
from harness.report.figures import configuration as configuration_name
from harness.report.markdown import Row, ratio, seconds, sizes, table
from harness.study.parts import BATCHED, TWIN

LOOP_FORMS = ("none", "in_loop", "per_step", BATCHED)


def mark(twin: Row, margin: float) -> str:
    """What a block's A/A control says of it: untrusted when it misses 1, coarse when wider than the margin."""
    if not twin["trusted"]:
        return "⚠ untrusted"
    return "coarse" if half_width(twin["ci_low"], twin["ci_high"]) > margin else ""


def everything(tables: Tables, drawn: Drawn) -> list[Row]:
    """Every workload and pass: its sizes, its figures, and the tables behind them."""
    found, issued = [], causes.by_place(tables)
    for workload, pass_ in sorted({key[1:] for key in drawn}):
        times = tables.times[(tables.times.workload == workload) & (tables.times["pass"] == pass_)]
        gaps = tables.gaps[(tables.gaps.workload == workload) & (tables.gaps["pass"] == pass_)]
        loop, alone = (gaps[group_of(gaps) == group] for group in (LOOP, ALONE))
        found.append(
            {
                "workload": workload,
                "pass": pass_,
                "figures": [
                    drawn[group, workload, pass_] for group in (LOOP, ALONE) if (group, workload, pass_) in drawn
                ],
                "loop": _gaps(tables, issued, loop, times, LOOP_FORMS) if len(loop) else "",
                "alone": _gaps(tables, issued, alone, times, (BATCHED,)) if len(alone) else "",
                "sizes": sizes(times.iloc[0]),
            }
        )
    return found


def _gaps(tables: Tables, issued: causes.Found, gaps: pd.DataFrame, times: pd.DataFrame, shown: Sequence[str]) -> str:
    """A row for each place: absolute times of the projections `shown`, and every ratio with its products."""
    contenders = _contenders(gaps)
    return table(_names(shown, contenders), _rows(tables, issued, gaps, times, shown, contenders))


def prototypes(tables: Tables) -> str:
    """A row for each place, workload and pass of what is marked as a prototype; nothing where there is none."""
    if tables.prototypes.empty:
        return ""
    rows, issued, contenders = [], causes.by_place(tables), _contenders(tables.prototypes)
    for (workload, pass_), gaps in tables.prototypes.groupby(["workload", "pass"], sort=True):
        times = tables.times[(tables.times.workload == workload) & (tables.times["pass"] == pass_)]
        made = _rows(tables, issued, gaps, times, LOOP_FORMS, contenders)
        rows += [[f"{workload}, {pass_}", *row] for row in made]
    return table(["", *_names(LOOP_FORMS, contenders)], rows)


def _contenders(gaps: pd.DataFrame) -> list[str]:
    return [c for c in CONTENDERS if c != TWIN and (gaps.contender == c).any()]


def _names(shown: Sequence[str], contenders: list[str]) -> list[str]:
    products = f"products: {' · '.join([*contenders, BATCHED])}"
    return ["", *shown, *(f"{c}/{BATCHED}" for c in contenders), products, "A/A", "processes × rounds"]


def _rows(
    tables: Tables,
    issued: causes.Found,
    gaps: pd.DataFrame,
    times: pd.DataFrame,
    shown: Sequence[str],
    contenders: list[str],
) -> list[list[str]]:
    """A row for each place of one workload and pass, in the order of `_names`."""
    key = [*CONFIG, "recurrence"]
    absolute = times.groupby([*key, "projection"], sort=True).median_s.median().to_dict()
    places: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in gaps.to_dict("records"):
        places.setdefault(tuple(row[name] for name in key), {})[row["contender"]] = row
    rows = []
    for values in sorted(places):
        by = places[values]
        place = next(iter(by.values()))
        each = [seconds(absolute.get((*values, p))) for p in shown]
        ratios = [ratio(by[c]) if c in by else "–" for c in contenders]
        marked = {"verdict": mark(by[TWIN], tables.study.margin), "direction": UNKNOWN} if TWIN in by else {}
        twin = ratio(by[TWIN] | marked) if TWIN in by else "–"
        needed = max((by[c]["needs"] for c in HEADLINE if c in by and by[c]["needs"] > 0), default=0)
        further = f", {int(needed)} more" if needed else ""
        processes = max(row["processes"] for row in by.values())
        rounds = statistics.median(row["rounds"] for row in by.values())
        counts = causes.counts(issued, place, [*contenders, BATCHED])
        rows.append([configuration_name(place), *each, *ratios, counts, twin, f"{processes} × {rounds:g}{further}"])
    return rows
