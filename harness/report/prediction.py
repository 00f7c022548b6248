"""What projecting costs, how the gap follows the sizes, and whether it was foreseen: the report's words and tables."""

import math
from typing import Any

import numpy as np

from harness.analysis.gaps import CONFIG, ENGINE, usable
from harness.analysis.stats import EQUIVALENT, FASTER, INCONCLUSIVE, SLOWER
from harness.analysis.tables import Tables
from harness.report import sweeps
from harness.report.figures import configuration as configuration_name
from harness.report.markdown import Row, counted, engine, seconds, table
from harness.study.parts import BATCHED

FORMS = ("in_loop", "per_step", BATCHED)
AIM = 0.10  # median absolute error of the forecast log gaps, at most
WORST = 8  # misses that are named
NEAR = 0.05  # from which a miss is looked into


def everything(tables: Tables, drawn: list[str]) -> Row | None:
    """The variables of the section, with the names of the figures; nothing where no cost was told apart."""
    if tables.costs.empty:
        return None
    return {
        "none": _none_in_training(tables),
        "costs": _costs(tables),
        "slopes": _slopes(tables),
        "swept": _swept(tables),
        "figures": [name for name in drawn if name != sweeps.FORECASTS],
        "score": score(tables),
        "constants": _constants(tables),
        "by_engine": _by_engine(tables),
        "misses": _misses(tables),
        "untold": _untold(tables),
    }


def _costs(tables: Tables) -> str:
    """A row for each place of the study's own workloads: what each form adds to none, and how far from the floor."""
    frame = tables.costs[tables.costs.workload.isin([w.name for w in tables.study.workloads])]
    rows = []
    for values, part in frame.groupby(["workload", "pass", *CONFIG, "recurrence"], sort=True):
        place = dict(zip(["workload", "pass", *CONFIG, "recurrence"], values, strict=True))
        by = {row["contender"]: row for row in part.to_dict("records")}
        added = [_added(by[form]) if form in by else "–" for form in FORMS]
        each = _signed(by["in_loop"]["product_s"]) if "in_loop" in by else "–"
        floors = " · ".join(_floors(by.get(form)) for form in FORMS)
        none = seconds(part.none_s.iloc[0])
        rows.append([f"{place['workload']}, {place['pass']}", configuration_name(place), none, *added, each, floors])
    names = [f"{form} adds" for form in FORMS]
    return table(["", "", "none", *names, "one product in the loop", f"times the floor: {' · '.join(FORMS)}"], rows)


def _none_in_training(tables: Tables) -> str:
    """What the run's projection none is in training, and what that makes of costs; nothing where it did not train."""
    if "train" not in tables.study.passes:
        return ""
    if said := tables.heading.get("none_in_training"):
        return f"In training *none* is {said}: the loss is part of what the forms add."
    return (
        "In training *none* has a loss of its own in this run, over [T, B, H] where the others' is over [T, B, O]: "
        "what they add is told lower by the price of that loss, and may be below nothing."
    )


def _added(row: Row) -> str:
    """A cost in time, with its interval, and as a share of none."""
    interval = "" if math.isnan(row["low_s"]) else f" [{_signed(row['low_s'])}, {_signed(row['high_s'])}]"
    share = f"({100 * row['cost_s'] / row['none_s']:+.1f}%)"
    return f"{_signed(row['cost_s'])}{interval} {share}{'' if row['trusted'] or not interval else ' ⚠'}"


def _floors(row: Row | None) -> str:
    return "–" if row is None or math.isnan(row["floor_s"]) else f"{row['call_s'] / row['floor_s']:.1f}"


def _slopes(tables: Tables) -> str:
    """What one product issued in the loop costs, in every place."""
    rows = []
    for row in tables.slopes.to_dict("records"):
        interval = "" if math.isnan(row["low_s"]) else f" [{_signed(row['low_s'])}, {_signed(row['high_s'])}]"
        costs = [f"{_signed(row['product_s'])}{interval}", _signed(row["roof_s"]), _signed(row["once_s"])]
        rows.append([f"{configuration_name(row)}, {row['pass']}", *costs, f"{row['sizes']} × {row['processes']}"])
    names = [
        "",
        "one product in the loop [95% interval]",
        "of it by the roofline",
        f"{BATCHED}, all steps",
        "T × processes",
    ]
    return table(names, rows) if rows else ""


def _signed(value: float) -> str:
    return f"-{seconds(-value)}" if value < 0 else seconds(value)


def _swept(tables: Tables) -> str:
    """Where batching wins, loses or does nothing among the sweep's points, in a sentence."""
    gaps = tables.swept[usable(tables.swept) & (tables.swept.contender == "in_loop")]
    if gaps.empty:
        return ""
    count = gaps.verdict.value_counts()
    said = ", ".join(f"{verdict} in {count.get(verdict, 0)}" for verdict in (SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE))
    centre = tables.study.sweep
    assert centre is not None
    return (
        f"Of {len(gaps)} gaps at {counted(gaps.workload.nunique(), 'size')} around `{centre.name}`, projecting in the "
        f"loop was {said}. Ratios go from {gaps.ratio.min():.2f} to {gaps.ratio.max():.2f}."
    )


def score(tables: Tables) -> str:
    """How well gaps were foreseen, in a few sentences."""
    frame = tables.scores
    if frame.empty:
        return ""
    errors, gaps = frame.error.abs(), np.log(frame.ratio)
    skill = 1 - float((frame.error**2).sum() / (gaps**2).sum())
    judged = frame[frame.verdict.isin([SLOWER, FASTER])]
    right = int(((judged.forecast > 1) == (judged.verdict == SLOWER)).sum())
    aim = "within" if errors.median() <= AIM else "**not within**"
    within = frame[frame.ci_low.notna()]
    held = (within.ci_low <= within.forecast) & (within.forecast <= within.ci_high)
    return (
        f"{len(frame)} gaps were forecast and then measured. The forecast's median absolute error is "
        f"**{errors.median():.1%}** of the ratio (as a logarithm), {aim} the {AIM:.0%} aimed at; 90% are within "
        f"{errors.quantile(0.9):.1%}. A baseline that predicts no gap, a ratio of 1 everywhere, has a median error of "
        f"{gaps.abs().median():.1%} (90% within {gaps.abs().quantile(0.9):.1%}); the forecast's skill score against "
        f"it is {skill:z.2f} (1 less the ratio of their sums of squared errors: 1 is perfect, 0 no better than it; no "
        f"share of a variance, for it is taken about 1 and not about the mean gap). Of {len(judged)} gaps judged "
        f"slower or faster, {right} were forecast on that side of 1. The measured 95% interval holds the forecast in "
        f"{int(held.sum())} of {len(within)}."
    )


def _constants(tables: Tables) -> str:
    """What the forecasts were made from, one row a configuration and pass."""
    rows = []
    for record in tables.forecasts:
        place = {name: record[name] for name in (*CONFIG, "recurrence")}
        for costs in record["costs"]:
            names = ("call_s", "step_s", "in_loop_s", "product_s", "after_s")
            rows.append([f"{configuration_name(place)}, {costs['pass']}", *(_signed(costs[name]) for name in names)])
    columns = ["", "a call", "a step", "in the loop, once", "in the loop, each product", "after the loop"]
    return table(columns, sorted(rows)) if rows else ""


def _by_engine(tables: Tables) -> str:
    """The errors by what runs the program, threads and pass."""
    rows = []
    for (*by, threads, pass_), part in tables.scores.groupby([*ENGINE, "threads", "pass"], sort=True):
        errors, gaps = part.error.abs(), np.log(part.ratio).abs()
        judged = part[part.verdict.isin([SLOWER, FASTER])]
        right = int(((judged.forecast > 1) == (judged.verdict == SLOWER)).sum())
        numbers = [f"{errors.median():.1%}", f"{errors.max():.1%}", f"{gaps.median():.1%}"]
        place = [engine(*by), counted(threads, "thread"), pass_, len(part)]
        rows.append([*place, *numbers, f"{right} of {len(judged)}" if len(judged) else "–"])
    columns = ["", "", "pass", "gaps", "median error", "largest", "without a forecast (no gap)", "side right"]
    return table(columns, rows) if rows else ""


def _misses(tables: Tables) -> str:
    """The largest misses, and which form it was that took longer or less than expected."""
    frame = tables.scores.assign(far=tables.scores.error.abs()).sort_values("far", ascending=False, kind="stable")
    rows = [_miss(row) for row in frame[frame.far > NEAR].head(WORST).to_dict("records")]
    columns = ["", "", "measured", "forecast", "in_loop adds to none", "as forecast", "what was other than expected"]
    return table(columns, rows) if rows else ""


def _miss(row: Row) -> list[Any]:
    place = [f"{row['workload']}, {row['pass']}", configuration_name(row)]
    share = "–" if math.isnan(row["share"]) else f"{row['share']:+.0%}"
    numbers = [f"{row['ratio']:.2f}", f"{row['forecast']:.2f}", share, f"{row['forecast_share']:+.0%}"]
    return [*place, *numbers, _why(row)]


def _why(row: Row) -> str:
    """Which of the two forms the forecast was wrong about: what in_loop, and what batched, takes by none's time."""
    in_loop, told = 1 + row["share"], 1 + row["forecast_share"]
    if math.isnan(in_loop):
        return "–"
    off = {"in_loop": math.log(in_loop / told), BATCHED: math.log((in_loop / row["ratio"]) / (told / row["forecast"]))}
    form = max(off, key=lambda one: abs(off[one]))
    return f"{form} took {'longer' if off[form] > 0 else 'less'}, against none, by {abs(off[form]):.0%}"


def _untold(tables: Tables) -> list[str]:
    """Seats for which nothing was forecast, and why."""
    lines = {
        f"{configuration_name(record)}: {record['reason'].partition(chr(10))[0]}"
        for record in tables.forecasts
        if record["status"] != "ok"
    }
    return sorted(lines)
