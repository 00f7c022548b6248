"""The gaps by workload and pass: the figures, and the tables behind them."""

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.analysis.gaps import CHUNKS, CONTENDERS
from harness.analysis.sample_size import HEADLINE
from harness.analysis.stats import UNKNOWN, half_width
from harness.analysis.tables import Tables
from harness.report import causes
from harness.report.figures import ALONE, LOOP, FigureNames, configuration_name, figure_group
from harness.report.markdown import Row, ratio, seconds, sizes, table
from harness.study.configuration import CONFIG
from harness.study.parts import BATCHED, TWIN, chunk_order
from impls.interface import family_of

LOOP_FORMS = ("none", "in_loop", "per_step", BATCHED)


def control_mark(control: Row, margin: float) -> str:
    """Return a block's mark by its A/A control: untrusted if that misses 1, coarse if it is wider than the margin."""
    if not control["trusted"]:
        return "⚠ untrusted"
    return "coarse" if half_width(control["ci_low"], control["ci_high"]) > margin else ""


def context(tables: Tables, figure_names: FigureNames) -> list[Row]:
    """Return for each workload and pass its sizes, its figures, and the tables behind them."""
    sections, products = [], causes.product_counts(tables)
    for workload, pass_ in sorted({key[1:] for key in figure_names}):
        times = tables.times[(tables.times.workload == workload) & (tables.times["pass"] == pass_)]
        gaps = tables.gaps[(tables.gaps.workload == workload) & (tables.gaps["pass"] == pass_)]
        loop_gaps, other_gaps = (gaps[figure_group(gaps) == group] for group in (LOOP, ALONE))
        sections.append(
            {
                "workload": workload,
                "pass": pass_,
                "figures": [
                    figure_names[group, workload, pass_]
                    for group in (LOOP, ALONE)
                    if (group, workload, pass_) in figure_names
                ],
                "loop": _gap_table(tables, products, loop_gaps, times, LOOP_FORMS) if len(loop_gaps) else "",
                "alone": _gap_table(tables, products, other_gaps, times, (BATCHED,)) if len(other_gaps) else "",
                "sizes": sizes(times.iloc[0]),
            }
        )
    return sections


def _gap_table(
    tables: Tables, products: causes.ProductCounts, gaps: pd.DataFrame, times: pd.DataFrame, projections: Sequence[str]
) -> str:
    """Return a table with a row for each configuration and recurrence.

    A row holds the absolute times of `projections`, and every ratio with its products.
    """
    contenders = _contenders(gaps)
    return table(
        _column_names(projections, contenders), _gap_rows(tables, products, gaps, times, projections, contenders)
    )


def prototype_table(tables: Tables) -> str:
    """Return a table of what is marked as a prototype; "" if there is none.

    It has a row for each configuration, recurrence, workload and pass.
    """
    if tables.prototypes.empty:
        return ""
    rows, products, contenders = [], causes.product_counts(tables), _contenders(tables.prototypes)
    for (workload, pass_), gaps in tables.prototypes.groupby(["workload", "pass"], sort=True):
        times = tables.times[(tables.times.workload == workload) & (tables.times["pass"] == pass_)]
        place_rows = _gap_rows(tables, products, gaps, times, LOOP_FORMS, contenders)
        rows += [[f"{workload}, {pass_}", *row] for row in place_rows]
    return table(["", *_column_names(LOOP_FORMS, contenders)], rows)


def _contenders(gaps: pd.DataFrame) -> list[str]:
    """Return the contenders that any gap has, in order, chunked ones by their number of chunks."""
    known = [name for name in CONTENDERS if name != TWIN and (gaps.contender == name).any()]
    cut = [name for name in set(gaps.contender) if family_of(name) in CHUNKS]
    return known + sorted(cut, key=lambda name: (CHUNKS.index(family_of(name)), chunk_order(name)))


def _column_names(projections: Sequence[str], contenders: list[str]) -> list[str]:
    products = f"products: {' · '.join([*contenders, BATCHED])}"
    return ["", *projections, *(f"{name}/{BATCHED}" for name in contenders), products, "A/A", "processes × rounds"]


def _gap_rows(
    tables: Tables,
    products: causes.ProductCounts,
    gaps: pd.DataFrame,
    times: pd.DataFrame,
    projections: Sequence[str],
    contenders: list[str],
) -> list[list[str]]:
    """Return a row for each configuration and recurrence of one workload and pass.

    Those of which any contender's interval does not hold 1 come first. Columns are in the order of `_column_names`.
    """
    key = [*CONFIG, "recurrence"]
    medians_s = times.groupby([*key, "projection"], sort=True).median_s.median().to_dict()
    places: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in gaps.to_dict("records"):
        places.setdefault(tuple(row[name] for name in key), {})[row["contender"]] = row
    rows = []
    for values in sorted(places, key=lambda values: (not _has_direction(places[values]), values)):
        group = places[values]
        place = next(iter(group.values()))
        medians = [seconds(medians_s.get((*values, projection))) for projection in projections]
        ratios = [ratio(group[name]) if name in group else "–" for name in contenders]
        flags = (
            {"verdict": control_mark(group[TWIN], tables.study.margin), "direction": UNKNOWN} if TWIN in group else {}
        )
        control = ratio(group[TWIN] | flags) if TWIN in group else "–"
        more = max((group[name]["needs"] for name in HEADLINE if name in group and group[name]["needs"] > 0), default=0)
        further = f", {int(more)} more" if more else ""
        processes = max(row["processes"] for row in group.values())
        rounds = statistics.median(row["rounds"] for row in group.values())
        counts = causes.format_product_counts(products, place, [*contenders, BATCHED])
        rows.append(
            [configuration_name(place), *medians, *ratios, counts, control, f"{processes} × {rounds:g}{further}"]
        )
    return rows


def _has_direction(group: dict[str, Row]) -> bool:
    """Return whether the interval of any contender of a row, its A/A control apart, does not hold 1."""
    return any(gap["direction"] != UNKNOWN for contender, gap in group.items() if contender != TWIN)
