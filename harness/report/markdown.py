"""Markdown tables, and the only place where units and digits are written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.analysis.stats import FASTER, SLOWER, UNKNOWN

Row = dict[str, Any]
FRAMEWORKS = {"tf": "TensorFlow", "torch": "PyTorch", "jax": "JAX"}


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def one_line(text: Any) -> str:
    """A text without line breaks, which would end a row or an item of a list."""
    return " ".join(str(text).splitlines())


def engine(framework: str, execution: str, device: str, precision: str) -> str:
    """What programs are run by: a CPU and fp32 go without saying."""
    where = "" if device == "cpu" else f" on {device}"
    name = f"{FRAMEWORKS.get(framework, framework)} {execution}{where}"
    return name if precision == "fp32" else f"{name} in {precision}"


def seconds(value: float | None) -> str:
    """A time with its unit, three significant digits."""
    if value is None or math.isnan(value):
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def amount(value: float | None, unit: str) -> str:
    """A large count with a metric prefix and its unit, three significant digits."""
    if value is None or math.isnan(value):
        return "–"
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def counted(number: int, thing: str) -> str:
    """So many of a thing."""
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def duration(value_s: float) -> str:
    """A long time, in the unit a reader would plan with."""
    if value_s < 90:
        return f"{value_s:.0f} s"
    return f"{value_s / 60:.0f} minutes" if value_s < 5400 else f"{value_s / 3600:.1f} hours"


def sizes(row: Mapping[Any, Any]) -> str:
    """A workload's sizes and cell, as the study names them."""
    return ", ".join(f"{size}={int(row[size])}" for size in "BTIHO") + f", {row['cell']}"


def ratio(row: Row) -> str:
    """A ratio, its interval, and what is known of it."""
    if math.isnan(row["ci_low"]):
        return f"{row['ratio']:.3f} (one process)"
    return f"{row['ratio']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}] {finding(row)}"


def finding(row: Row) -> str:
    """A gap's verdict; before it the direction, where there is one that the verdict does not say."""
    implied = row["verdict"] in (SLOWER, FASTER) or row["direction"] == UNKNOWN
    return str(row["verdict"]) if implied else f"{row['direction']}, {row['verdict']}"
