"""Text and tables of the report on projection costs, the gap as a function of the sizes, and forecast accuracy."""

import math
from typing import Any

import numpy as np

from harness.analysis.gaps import ENGINE, is_included
from harness.analysis.stats import EQUIVALENT, FASTER, INCONCLUSIVE, SLOWER
from harness.analysis.tables import Tables
from harness.report import sweeps
from harness.report.figures import configuration_name
from harness.report.markdown import Row, execution_name, pluralize, seconds, table
from harness.study.configuration import CONFIG
from harness.study.parts import BATCHED

FORMS = ("in_loop", "per_step", BATCHED)
AIM = 0.10  # largest acceptable median absolute error of the forecast log gaps
WORST = 8  # number of misses that the report lists
NEAR = 0.05  # a miss is listed only if its absolute error is above this


def context(tables: Tables, figure_names: list[str]) -> Row | None:
    """Return the section's template variables, including the figures' names; None where the tables have no costs."""
    if tables.costs.empty:
        return None
    return {
        "none": _none_in_training(tables),
        "costs": _cost_table(tables),
        "slopes": _slope_table(tables),
        "swept": _sweep_summary(tables),
        "figures": [name for name in figure_names if name != sweeps.FORECASTS],
        "score": score_summary(tables),
        "constants": _constant_table(tables),
        "by_engine": _errors_by_execution(tables),
        "misses": _miss_table(tables),
        "unavailable": _unavailable_forecasts(tables),
    }


def _cost_table(tables: Tables) -> str:
    """Tabulate, for the study's own workloads, what each form adds to `none` and its time over the lower bound.

    One row for each workload, pass, configuration and recurrence.
    """
    frame = tables.costs[tables.costs.workload.isin([w.name for w in tables.study.workloads])]
    rows = []
    for values, part in frame.groupby(["workload", "pass", *CONFIG, "recurrence"], sort=True):
        group = dict(zip(["workload", "pass", *CONFIG, "recurrence"], values, strict=True))
        costs = {row["contender"]: row for row in part.to_dict("records")}
        additions = [_format_addition(costs[form]) if form in costs else "–" for form in FORMS]
        product = _format_signed(costs["in_loop"]["product_s"]) if "in_loop" in costs else "–"
        bounds = " · ".join(_format_over_lower_bound(costs.get(form)) for form in FORMS)
        none = seconds(part.none_s.iloc[0])
        rows.append(
            [f"{group['workload']}, {group['pass']}", configuration_name(group), none, *additions, product, bounds]
        )
    names = [f"{form} adds" for form in FORMS]
    return table(
        ["", "", "none", *names, "one product in the loop", f"times the lower bound: {' · '.join(FORMS)}"], rows
    )


def _none_in_training(tables: Tables) -> str:
    """Say what the projection `none` is in this run's training, and what that means for the costs.

    Returns an empty string where the run did not train.
    """
    if "train" not in tables.study.passes:
        return ""
    if description := tables.header.none_in_training:
        return f"In training *none* is {description}: the loss is part of what the forms add."
    return (
        "In training *none* has a loss of its own in this run, over [T, B, H] where the others' is over [T, B, O]: "
        "what they add is too low by the cost of that loss, and may be negative."
    )


def _format_addition(row: Row) -> str:
    """Format a cost as a time with its interval, and as a share of the time of `none`."""
    interval = "" if math.isnan(row["low_s"]) else f" [{_format_signed(row['low_s'])}, {_format_signed(row['high_s'])}]"
    share = f"({100 * row['cost_s'] / row['none_s']:+.1f}%)"
    return f"{_format_signed(row['cost_s'])}{interval} {share}{'' if row['trusted'] or not interval else ' ⚠'}"


def _format_over_lower_bound(row: Row | None) -> str:
    """Format the time of a call over its lower bound."""
    return "–" if row is None or math.isnan(row["floor_s"]) else f"{row['call_s'] / row['floor_s']:.1f}"


def _slope_table(tables: Tables) -> str:
    """Tabulate what one matrix product issued in the loop costs, a row for each configuration and pass."""
    rows = []
    for row in tables.slopes.to_dict("records"):
        interval = (
            "" if math.isnan(row["low_s"]) else f" [{_format_signed(row['low_s'])}, {_format_signed(row['high_s'])}]"
        )
        costs = [
            f"{_format_signed(row['product_s'])}{interval}",
            _format_signed(row["roof_s"]),
            _format_signed(row["once_s"]),
        ]
        rows.append([f"{configuration_name(row)}, {row['pass']}", *costs, f"{row['sizes']} × {row['processes']}"])
    names = [
        "",
        "one product in the loop [95% interval]",
        "of it by the roofline",
        f"{BATCHED}, all steps",
        "T × processes",
    ]
    return table(names, rows) if rows else ""


def _format_signed(value: float) -> str:
    return f"-{seconds(-value)}" if value < 0 else seconds(value)


def _sweep_summary(tables: Tables) -> str:
    """Count the verdicts on in_loop over the sweep's points, and give the range of its ratios."""
    gaps = tables.swept[is_included(tables.swept) & (tables.swept.contender == "in_loop")]
    if gaps.empty:
        return ""
    counts = gaps.verdict.value_counts()
    listing = ", ".join(
        f"{verdict} in {counts.get(verdict, 0)}" for verdict in (SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE)
    )
    centre = tables.study.sweep
    assert centre is not None
    return (
        f"Of {len(gaps)} gaps at {pluralize(gaps.workload.nunique(), 'size')} around `{centre.name}`, projecting in "
        f"the loop was {listing}. Ratios go from {gaps.ratio.min():.2f} to {gaps.ratio.max():.2f}."
    )


def score_summary(tables: Tables) -> str:
    """Summarise how well gaps were predicted: errors, skill, the side of 1, and interval coverage."""
    scores = tables.scores
    if scores.empty:
        return ""
    errors, log_ratios = scores.error.abs(), np.log(scores.ratio)
    skill = 1 - float((scores.error**2).sum() / (log_ratios**2).sum())
    clear = scores[scores.verdict.isin([SLOWER, FASTER])]
    hits = int(((clear.forecast > 1) == (clear.verdict == SLOWER)).sum())
    aim = "within" if errors.median() <= AIM else "**not within**"
    constant_errors = (log_ratios - log_ratios.median()).abs()
    slower_count = int((clear.verdict == SLOWER).sum())
    intervals = scores[scores.ci_low.notna()]
    coverage = (intervals.ci_low <= intervals.forecast) & (intervals.forecast <= intervals.ci_high)
    return (
        f"{len(scores)} gaps were forecast and then measured. The forecast's median absolute error is "
        f"**{errors.median():.1%}** of the ratio (as a logarithm), {aim} the {AIM:.0%} aimed at; 90% are within "
        f"{errors.quantile(0.9):.1%}. A baseline that predicts no gap, a ratio of 1 everywhere, has a median error of "
        f"{log_ratios.abs().median():.1%} (90% within {log_ratios.abs().quantile(0.9):.1%}); the forecast's skill "
        f"score against it is {skill:z.2f} (1 less the ratio of their sums of squared errors: 1 is perfect, 0 no "
        f"better than it; no share of a variance, for it is taken about 1 and not about the mean gap). The median of "
        f"these gaps, which is known only afterwards, would have a median error of {constant_errors.median():.1%} as "
        f"the forecast of all. Of {len(clear)} gaps judged slower or faster, {slower_count} of them slower, {hits} "
        f"were forecast on that side of 1. The measured 95% interval holds the forecast in {int(coverage.sum())} of "
        f"{len(intervals)}."
    )


def _constant_table(tables: Tables) -> str:
    """Tabulate the constants that the forecasts were computed from, a row for each configuration and pass."""
    rows = []
    for record in tables.forecasts:
        program = configuration_name(record.configuration.row() | {"recurrence": record.recurrence})
        for costs in record.costs:
            numbers = (costs.call_s, costs.step_s, costs.in_loop_s, costs.product_s, costs.after_s)
            rows.append([f"{program}, {costs.pass_}", *map(_format_signed, numbers)])
    columns = ["", "a call", "a step", "in the loop, once", "in the loop, each product", "after the loop"]
    return table(columns, sorted(rows)) if rows else ""


def _errors_by_execution(tables: Tables) -> str:
    """Tabulate the forecast errors by framework and execution, thread count and pass."""
    rows = []
    for (*engine_key, threads, pass_), part in tables.scores.groupby([*ENGINE, "threads", "pass"], sort=True):
        errors, log_ratios = part.error.abs(), np.log(part.ratio).abs()
        clear = part[part.verdict.isin([SLOWER, FASTER])]
        hits = int(((clear.forecast > 1) == (clear.verdict == SLOWER)).sum())
        numbers = [f"{errors.median():.1%}", f"{errors.max():.1%}", f"{log_ratios.median():.1%}"]
        counted = pluralize(threads, "thread") if engine_key[2] == "cpu" else ""
        labels = [execution_name(*engine_key), counted, pass_, len(part)]
        rows.append([*labels, *numbers, f"{hits} of {len(clear)}" if len(clear) else "–"])
    columns = ["", "", "pass", "gaps", "median error", "largest", "without a forecast (no gap)", "side right"]
    return table(columns, rows) if rows else ""


def _miss_table(tables: Tables) -> str:
    """Tabulate the largest misses, and which form took more or less time than forecast."""
    scores = tables.scores.assign(far=tables.scores.error.abs()).sort_values("far", ascending=False, kind="stable")
    rows = [_miss_row(row) for row in scores[scores.far > NEAR].head(WORST).to_dict("records")]
    columns = [
        "",
        "",
        "measured",
        "forecast",
        "in_loop adds to none",
        "as forecast",
        "what differed from the prediction",
    ]
    return table(columns, rows) if rows else ""


def _miss_row(row: Row) -> list[Any]:
    labels = [f"{row['workload']}, {row['pass']}", configuration_name(row)]
    share = "–" if math.isnan(row["share"]) else f"{row['share']:+.0%}"
    numbers = [f"{row['ratio']:.2f}", f"{row['forecast']:.2f}", share, f"{row['forecast_share']:+.0%}"]
    return [*labels, *numbers, _largest_form_error(row)]


def _largest_form_error(row: Row) -> str:
    """Name the form whose forecast is further off, and give the error.

    Both forms are compared as multiples of the time of `none`: in_loop's is 1 + share, and batched's is that divided by
    the ratio. The error is a difference of logarithms.
    """
    in_loop, in_loop_forecast = 1 + row["share"], 1 + row["forecast_share"]
    if math.isnan(in_loop):
        return "–"
    log_errors = {
        "in_loop": math.log(in_loop / in_loop_forecast),
        BATCHED: math.log((in_loop / row["ratio"]) / (in_loop_forecast / row["forecast"])),
    }
    form = max(log_errors, key=lambda name: abs(log_errors[name]))
    return f"{form} took {'longer' if log_errors[form] > 0 else 'less'}, against none, by {abs(log_errors[form]):.0%}"


def _unavailable_forecasts(tables: Tables) -> list[str]:
    """List the configurations without a forecast, each with the reason."""
    lines = {
        f"{configuration_name(record.configuration.row() | {'recurrence': record.recurrence})}: "
        f"{record.reason.partition(chr(10))[0]}"
        for record in tables.forecasts
        if record.status != "ok"
    }
    return sorted(lines)
