"""Why: what one call of each program did, as counted in it, beside what theory expects."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.analysis.gaps import CONFIG, ENGINE
from harness.analysis.tables import Tables
from harness.report.figures import configuration as configuration_name
from harness.report.markdown import Row, amount, engine, seconds, table
from harness.study.parts import BATCHED, LOOPS

FORMS = ("none", "in_loop", "per_step", BATCHED)
PLACE = [*CONFIG, "workload", "pass", "recurrence"]
ONE_CALL = (BATCHED, "bmm", "vmap", "library")  # projections that theory gives one product whatever T
BOUND = 0.8  # of a call, from which the GPU's own time is what it waits for
MOST = 4  # kernels of a layer that are named
BACKWARD = 3  # products of a training step for one of a forward pass: y, and the gradients of h and of w_out


Found = dict[tuple[Any, ...], dict[str, Any]]  # values of PLACE -> projection -> products of one call


def by_place(tables: Tables) -> Found:
    """The products that were counted, laid out once for every table that shows them."""
    found: Found = {}
    columns = [tables.evidence[name] for name in (*PLACE, "projection", "products")]
    for *place, projection, products in zip(*columns, strict=True):
        found.setdefault(tuple(place), {})[projection] = products
    return found


def counts(found: Found, place: Row, projections: Sequence[str]) -> str:
    """The products that one call issues, for each projection."""
    here = found.get(tuple(place[name] for name in PLACE), {})
    numbers = [here.get(projection) for projection in projections]
    return " · ".join("–" if n is None or pd.isna(n) else f"{n:g}" for n in numbers) if here else "not counted"


def added(tables: Tables) -> pd.DataFrame:
    """Products that a projection adds to none, and those that theory gives: columns found, expected, T."""
    steps = tables.times.drop_duplicates("workload").set_index("workload")["T"]
    rows = []
    for values, by in by_place(tables).items():
        place = dict(zip(PLACE, values, strict=True))
        none = 0 if place["recurrence"] == "given" else by.get("none")
        for projection, products in by.items():
            if projection == "none" or none is None or pd.isna(products) or pd.isna(none):
                continue
            t = int(steps[place["workload"]])
            forward = 1 if projection in ONE_CALL else t
            times = BACKWARD - (place["recurrence"] == "given") if place["pass"] == "train" else 1
            numbers = {"found": int(products - none), "expected": forward * times, "T": t}
            rows.append(place | {"projection": projection} | numbers)
    return pd.DataFrame(rows, columns=[*PLACE, "projection", "found", "expected", "T"])


def everything(tables: Tables) -> str:
    """What was counted, and where a compiler made something else of a form than was written."""
    if tables.evidence.empty:
        return "Nothing was counted in this run."
    return "\n\n".join(filter(None, (_surprises(added(tables)), _counted(tables), _layers(tables), _missing(tables))))


def _surprises(frame: pd.DataFrame) -> str:
    """In how many programs the projection added the products that were written, and what the others added."""
    if frame.empty:
        return ""
    other = frame[frame.found != frame.expected]
    start = (
        f"In {len(frame) - len(other)} of {len(frame)} counted programs the projection adds exactly the matrix "
        "products that were written to those of the recurrence alone: T in the loop or after it, one for all steps, "
        "and three times that in training (for y and for the gradients of h and of w_out; where h is given, it has "
        "none). "
    )
    if other.empty:
        return start.strip()
    lines = []
    for (*by, recurrence, projection, pass_), part in other.groupby([*ENGINE, "recurrence", "projection", "pass"]):
        seen = Counter((row.workload, row.found, row.expected, row["T"]) for _, row in part.iterrows())
        each = ", ".join(f"{found} for {expected} ({name}, T={t})" for name, found, expected, t in sorted(seen))
        lines.append(f"- {engine(*by)} {recurrence}, {projection}, {pass_}: {each}")
    return f"{start}In the others the compiler or the framework's layer made something else of it:\n\n" + "\n".join(
        lines
    )


def _counted(tables: Tables) -> str:
    """A row for each place with a loop, with the numbers of each form."""
    frame = tables.evidence[tables.evidence.recurrence.isin([*LOOPS, "layer"])]
    frame = once(frame)
    rows = []
    for values, part in frame.groupby(["workload", "pass", *CONFIG, "recurrence"], sort=True):
        place = dict(zip(["workload", "pass", *CONFIG, "recurrence"], values, strict=True))
        by = {row["projection"]: row for row in part.to_dict("records")}
        columns = [
            _each(by, "products", lambda n: f"{n:g}"),
            _each(by, "kernels", lambda n: f"{n:g}"),
            _each(by, "fusions", lambda n: f"{n:g}"),
            _each(by, "flops", lambda n: amount(n, "")),
            _each(by, "temp_bytes", lambda n: amount(n, "B")),
        ]
        rows.append([f"{place['workload']}, {place['pass']}", configuration_name(place).rpartition(",")[0], *columns])
    heading = " · ".join(FORMS)
    names = ["products", "kernels", "fusions", "operations of the products", "temporary memory"]
    return f"Of each program, for {heading}:\n\n" + table(["", "", *names], rows)


def once(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one thread count of each device: what is counted is the same in all, and they would count double."""
    return frame[frame.threads == frame.groupby("device").threads.transform("min")]


def devices(tables: Tables) -> str:
    """A GPU's own time beside the call's, and what ran in it; nothing where no GPU was counted."""
    frame = tables.evidence[tables.evidence.device_ns.notna()]
    frame = frame[frame.projection.isin(FORMS)]
    key = [*CONFIG, "workload", "pass", "recurrence", "projection"]
    wall = tables.times.groupby(key, sort=False).median_s.median()
    rows = []
    for row in frame.sort_values(["workload", "pass", *key[:5], "recurrence", "projection"]).to_dict("records"):
        call_s, device_s = wall.get(tuple(row[name] for name in key), math.nan), row["device_ns"] / 1e9
        busy = device_s / call_s
        bound = "–" if math.isnan(busy) else "the GPU" if busy >= BOUND else "the host"
        place = [f"{row['workload']}, {row['pass']}", configuration_name(row).rpartition(",")[0], row["projection"]]
        times = [seconds(call_s), seconds(device_s), "–" if math.isnan(busy) else f"{busy:.0%}", bound]
        rows.append([*place, *times, row["device_kinds"], row["graph_launches"]])
    names = ["", "", "", "call", "GPU's own", "share", "waits for", "kernels of a call", "graph launches"]
    return table(names, rows) if rows else ""


def _each(by: dict[str, Row], column: str, text: Any) -> str:
    values = [by[p][column] if p in by else None for p in FORMS]
    if all(value is None or pd.isna(value) for value in values):
        return "–"
    return " · ".join("–" if value is None or pd.isna(value) else text(value) for value in values)


def _layers(tables: Tables) -> str:
    """Which kernels ran in the framework's own layer: whether there is a fused one, nobody needs to believe."""
    frame = tables.evidence[(tables.evidence.recurrence == "layer") & (tables.evidence.projection == "none")]
    cells = tables.times.drop_duplicates("workload").set_index("workload")["cell"]
    lines = []
    for by, part in frame.groupby(ENGINE, sort=True):
        row = part.sort_values(["pass", "workload", "threads"]).iloc[0]
        kernels = sorted(
            (kernel.partition("×") for kernel in filter(None, row.kernel_names.split("; "))),
            key=lambda k: (-int(k[0]), k[2]),
        )
        most = ", ".join(f"{count} {name}" for count, _, name in kernels[:MOST])
        lines.append(f"- {engine(*by)} ({row.workload}, {cells[row.workload]}, {row['pass']}): {most}")
    return "What ran most often in the framework's own layer, unprojected:\n\n" + "\n".join(lines) if lines else ""


def _missing(tables: Tables) -> str:
    """What could not be counted, and why, one line a reason."""
    frame = tables.evidence[tables.evidence.missing != ""]
    lines = []
    for (*by, missing), part in frame.groupby([*ENGINE, "missing"], sort=True):
        lines.append(f"- {engine(*by)} ({len(part)} programs): {missing}")
    return "What could not be had:\n\n" + "\n".join(lines) if lines else ""
