"""Page faults beside the ratios: whether the allocator affects what was measured."""

from typing import Any

from harness.analysis.gaps import GAP_KEYS
from harness.analysis.page_faults import PLACE, arms_with_uneven_faults
from harness.analysis.tables import Tables
from harness.report.figures import configuration_name
from harness.report.markdown import pluralize, ratio, table
from harness.study.parts import TWIN

WORTH = 0.01  # share of an arm's time above which its page faults get a row
SAID = {
    "held": "Workers hold their memory: what a process was given once it keeps",
    "default": "Workers give memory back and take it anew as glibc does by default",
    "tcmalloc": "Workers take memory by TCMalloc",
    "jemalloc": "Workers take memory by jemalloc",
}


def section_text(tables: Tables) -> str:
    """Return how memory was taken, and the ratios of arms that spend some of their time on page faults.

    Returns "" for old records, which count no page faults.
    """
    if tables.faults.empty:
        return ""
    shares = tables.faults.groupby(PLACE).share.median().to_dict()
    faults_per_call = tables.faults.groupby(PLACE).faults.median().to_dict()
    uneven_rows = arms_with_uneven_faults(tables.faults, tables.study.margin)[PLACE]
    uneven_arms = set(uneven_rows.itertuples(index=False, name=None))
    gaps = tables.gaps[tables.gaps.contender != TWIN].to_dict("records")
    rows = []
    for gap in gaps:
        pair = _arm_places(gap)
        if max(shares.get(arm, 0.0) for arm in pair) > WORTH or uneven_arms & set(pair):
            labels = [configuration_name(gap), f"{gap['workload']} {gap['pass']}", gap["contender"], ratio(gap)]
            cells = [f"{faults_per_call.get(arm, 0):,.0f} ({shares.get(arm, 0):.1%})" for arm in pair]
            rows.append([*labels, *cells, "in some processes alone" if uneven_arms & set(pair) else ""])
    start = f"{SAID[tables.study.memory]}. Page faults take more than {WORTH:.0%} of an arm's time"
    start += f", or by {tables.study.margin:.0%} more of it in one process than in another,"
    if not rows:
        return f"{start} in none of {pluralize(len(gaps), 'gap')}."
    columns = ["", "", "contender", "ratio", "faults a call (share of its time)", "batched's", "uneven"]
    return f"{start} in {len(rows)} of {pluralize(len(gaps), 'gap')}:\n\n{table(columns, rows)}"


def _arm_places(gap: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return the places of a gap's two arms."""
    place = tuple(gap[key] for key in GAP_KEYS if key != "contender")
    return [(*place, gap["contender"]), (*place, gap["baseline"])]


def problems(tables: Tables) -> list[str]:
    """Return a line for each arm that page faults slow in some processes and not in others."""
    return [
        f"uneven memory: {configuration_name(row)}, {row['projection']}, {row['workload']} {row['pass']}: "
        f"page faults take {row['min']:.0%} of its time in one process and {row['max']:.0%} in another, so that the "
        "allocator is part of its ratios"
        for row in arms_with_uneven_faults(tables.faults, tables.study.margin).to_dict("records")
    ]
