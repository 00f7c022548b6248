"""Markdown tables, and the only place where units and digits are formatted."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.analysis.stats import FASTER, SLOWER, UNKNOWN

Row = dict[str, Any]
MOST_DIGITS = 3  # decimal places of a ratio
FRAMEWORKS = {"tf": "TensorFlow", "torch": "PyTorch", "jax": "JAX"}


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table.

    Its columns are not padded, as a library's would be: a long cell then changes no other row, and files stay small.
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def one_line(text: Any) -> str:
    """Return a text without line breaks, which would end a table row or a list item."""
    return " ".join(str(text).splitlines())


def execution_name(framework: str, execution: str, device: str, precision: str) -> str:
    """Return the name of what runs a program. A CPU and fp32 are the defaults and left out."""
    suffix = "" if device == "cpu" else f" on {device}"
    name = f"{FRAMEWORKS.get(framework, framework)} {execution}{suffix}"
    return name if precision == "fp32" else f"{name} in {precision}"


def seconds(value: float | None) -> str:
    """Return a time, given in seconds, with its unit and three significant digits; a dash if there is none."""
    if value is None or math.isnan(value):
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def amount(value: float | None, unit: str) -> str:
    """Return a large count with a metric prefix, its unit and three significant digits; a dash if there is none."""
    if value is None or math.isnan(value):
        return "–"
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def with_threads(place: str, device: str, threads: float) -> str:
    """Return the name of a place with its thread count, which is not varied on a GPU and left out there."""
    return f"{place}, {pluralize(int(threads), 'thread')}" if device == "cpu" else place


def pluralize(number: int, thing: str) -> str:
    """Return a number with the thing that it counts, in the plural unless the number is 1."""
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def duration(value_s: float) -> str:
    """Return a long time in the unit that a reader would plan with: seconds, minutes or hours."""
    if value_s < 90:
        return f"{value_s:.0f} s"
    return f"{value_s / 60:.0f} minutes" if value_s < 5400 else f"{value_s / 3600:.1f} hours"


def sizes(row: Mapping[Any, Any]) -> str:
    """Return a workload's sizes and cell, and its loss and layers where they are not squared and one."""
    words = [row["cell"], *([row["loss"]] if row.get("loss", "squared") != "squared" else [])]
    words += [pluralize(row["layers"], "layer")] if row.get("layers", 1) > 1 else []
    return ", ".join([*(f"{size}={int(row[size])}" for size in "BTIHO"), *words])


def ratio(row: Row) -> str:
    """Return a gap's ratio with its interval and finding. A gap of one process has no interval or finding."""
    text = interval(row["ratio"], row["ci_low"], row["ci_high"])
    return text if math.isnan(row["ci_low"]) else f"{text} {finding(row)}"


def bold_interval(value: float, low: float, high: float) -> str:
    """Return a ratio with its interval, in bold where that does not hold 1."""
    text = interval(value, low, high)
    return f"**{text}**" if low > 1 or high < 1 else text


def interval(value: float, low: float, high: float) -> str:
    """Return a ratio with its interval, in digits no finer than the interval's half-width.

    Where rounding would put a limit at 1 that does not lie there, both have as many digits as it takes to tell.
    """
    if math.isnan(low):
        return f"{value:.2f} (one process)"
    digits = MOST_DIGITS if high == low else min(MOST_DIGITS, max(1, -math.floor(math.log10((high - low) / 2))))
    while digits < MOST_DIGITS + 1 and any(limit != 1 and round(limit, digits) == 1 for limit in (low, high)):
        digits += 1
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def finding(row: Row) -> str:
    """Return a gap's verdict, preceded by its direction where it has one that the verdict does not imply."""
    implied = row["verdict"] in (SLOWER, FASTER) or row["direction"] == UNKNOWN
    return str(row["verdict"]) if implied else f"{row['direction']}, {row['verdict']}"
