"""The report's section on causes: what one call of each program did, as counted in it, and what theory expects."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from harness.analysis.gaps import CHUNKS, ENGINE
from harness.analysis.tables import Tables
from harness.report.figures import engine_name
from harness.report.markdown import Row, amount, execution_name, seconds, table
from harness.study.configuration import CONFIG
from harness.study.parts import BATCHED
from harness.study.study import LOOPS
from impls.interface import LOSS_INSIDE, chunk_sizes, family_of

FORMS = ("none", "in_loop", "per_step", "bmm", BATCHED)
PLACE = [*CONFIG, "workload", "pass", "recurrence"]
ONE_CALL = (BATCHED, "bmm", "vmap", "library", "hoisted")  # projections that make one product for any T, by theory
BOUND = 0.8  # least share of a call that kernels take where they decide its time
MOST = 4  # kernels of a layer that are listed
BACKWARD = 3  # products of a training step per product of a forward pass: y, and the gradients of h and of w_out


ProductCounts = dict[tuple[Any, ...], dict[str, Any]]  # values of PLACE -> projection -> products of one call


def product_counts(tables: Tables) -> ProductCounts:
    """Return the counted products by place and projection, for all tables that show them."""
    products_by_place: ProductCounts = {}
    columns = [tables.evidence[name] for name in (*PLACE, "projection", "products")]
    for *place, projection, products in zip(*columns, strict=True):
        products_by_place.setdefault(tuple(place), {})[projection] = products
    return products_by_place


def format_product_counts(products_by_place: ProductCounts, place: Row, projections: Sequence[str]) -> str:
    """Return the products that one call issues, for each projection, as text."""
    products = products_by_place.get(tuple(place[name] for name in PLACE), {})
    numbers = [products.get(projection) for projection in projections]
    return " · ".join("–" if n is None or pd.isna(n) else f"{n:g}" for n in numbers) if products else "not counted"


def added_products(tables: Tables) -> pd.DataFrame:
    """Return the products that each projection adds to `none`, and those that theory expects.

    Columns: PLACE, projection, found, expected, T.
    """
    steps = tables.times.drop_duplicates("workload").set_index("workload")["T"]
    rows, counts = [], product_counts(tables)
    for values, place_products in counts.items():
        place = dict(zip(PLACE, values, strict=True))
        baseline = _products_alone(counts, place)
        for projection, products in place_products.items():
            if projection == "none" or baseline is None or pd.isna(products) or pd.isna(baseline):
                continue
            length = int(steps[place["workload"]])
            family = family_of(projection)
            forward = 1 if projection in ONE_CALL else length
            if family in CHUNKS:
                forward = len(chunk_sizes(projection, length))
            backward = BACKWARD - (place["recurrence"] == "given") + (family in LOSS_INSIDE)  # which computes y again
            factor = backward if place["pass"] == "train" else 1
            numbers = {"found": int(products - baseline), "expected": forward * factor, "T": length}
            rows.append(place | {"projection": projection} | numbers)
    return pd.DataFrame(rows, columns=[*PLACE, "projection", "found", "expected", "T"])


def _products_alone(counts: ProductCounts, place: Row) -> Any:
    """Return the products of a place's recurrence alone: those of `none`, which in pass loss are the forward pass's."""
    if place["recurrence"] == "given":
        return 0
    pass_ = "forward" if place["pass"] == "loss" else place["pass"]
    return counts.get(tuple((place | {"pass": pass_})[name] for name in PLACE), {}).get("none")


def unexpected_products(tables: Tables) -> str:
    """Say in how many programs a compiler made something else of a form than was written, and list them."""
    return "" if tables.evidence.empty else _unexpected_products(added_products(tables))


def section_text(tables: Tables) -> str:
    """Return what was counted, and where a compiler made something else of a form than was written."""
    if tables.evidence.empty:
        return "Nothing was counted in this run."
    return "\n\n".join(
        filter(
            None,
            (
                _unexpected_products(added_products(tables)),
                _counts_table(tables),
                _layer_kernels(tables),
                _missing_counts(tables),
            ),
        )
    )


def _unexpected_products(frame: pd.DataFrame) -> str:
    """Say in how many programs the projection added the products that were written, and list what the others added."""
    if frame.empty:
        return ""
    surprises = frame[frame.found != frame.expected]
    start = (
        f"In {len(frame) - len(surprises)} of {len(frame)} counted programs the projection adds exactly the matrix "
        "products that were written to those of the recurrence alone: T in the loop or after it, one for all steps or "
        "for each chunk of them, and three times that in training (for y and for the gradients of h and of w_out; "
        "where h is given, it has none). "
    )
    if surprises.empty:
        return start.strip()
    lines = []
    for (*keys, recurrence, projection, pass_), part in surprises.groupby(
        [*ENGINE, "recurrence", "projection", "pass"]
    ):
        cases = Counter((row.workload, row.found, row.expected, row["T"]) for _, row in part.iterrows())
        listing = ", ".join(
            f"{count} for {expected} ({name}, T={steps})" for name, count, expected, steps in sorted(cases)
        )
        lines.append(f"- {execution_name(*keys)} {recurrence}, {projection}, {pass_}: {listing}")
    return f"{start}In the others the compiler or the framework's layer made something else of it:\n\n" + "\n".join(
        lines
    )


def _counts_table(tables: Tables) -> str:
    """Return a table with a row for each place with a loop or layer, which holds the numbers of each form."""
    frame = tables.evidence[tables.evidence.recurrence.isin([*LOOPS, "layer"])]
    frame = rows_with_fewest_threads(frame)
    names = [name for name in FORMS if (frame.projection == name).any()]
    rows = []
    for values, part in frame.groupby(["workload", "pass", *CONFIG, "recurrence"], sort=True):
        place = dict(zip(["workload", "pass", *CONFIG, "recurrence"], values, strict=True))
        forms = {row["projection"]: row for row in part.to_dict("records")}
        counts = [
            format_by_form(forms, "products", lambda number: f"{number:g}", names),
            format_by_form(forms, "kernels", lambda number: f"{number:g}", names),
            format_by_form(forms, "fusions", lambda number: f"{number:g}", names),
            format_by_form(forms, "flops", lambda number: amount(number, ""), names),
            format_by_form(forms, "temp_bytes", lambda number: amount(number, "B"), names),
        ]
        rows.append([f"{place['workload']}, {place['pass']}", engine_name(place), *counts])
    header = " · ".join(names)
    columns = ["products", "kernels", "fusions", "operations of the products", "temporary memory"]
    return f"Of each program, for {header}:\n\n" + table(["", "", *columns], rows)


def rows_with_fewest_threads(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one thread count of each device.

    Counts are the same for all thread counts, so the other rows would count double.
    """
    return frame[frame.threads == frame.groupby("device").threads.transform("min")]


def _gpu_programs(tables: Tables) -> list[Row]:
    """Return the evidence of each program counted on a GPU, with `call_s` and `device_s`, and their ratio `share`."""
    frame = tables.evidence[tables.evidence.device_ns.notna()]
    frame = frame[frame.projection.isin(FORMS)]
    keys = [*CONFIG, "workload", "pass", "recurrence", "projection"]
    wall_s = tables.times.groupby(keys, sort=False).median_s.median()
    rows = []
    for row in frame.sort_values(["workload", "pass", *keys[:5], "recurrence", "projection"]).to_dict("records"):
        call_s, device_s = wall_s.get(tuple(row[name] for name in keys), math.nan), row["device_ns"] / 1e9
        rows.append(row | {"call_s": call_s, "device_s": device_s, "share": device_s / call_s})
    return rows


def gpu_summary(tables: Tables) -> str:
    """Say for each execution in a loop which share of a call the GPU works; "" if no GPU was counted."""
    rows = [row for row in _gpu_programs(tables) if row["recurrence"] in LOOPS and not math.isnan(row["share"])]
    if not rows:
        return ""
    shares: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["share"]):
        name = execution_name(*(row[key] for key in ENGINE))
        shares.setdefault(name, []).append(row["share"])
    clauses = [f"{name} {_range_text(values)}" for name, values in shares.items()]
    waiting = sum(row["share"] < BOUND for row in rows)
    return (
        f"The GPU's kernels take this share of a call: {', '.join(clauses)}. In {waiting} of {len(rows)} programs it "
        f"is below {BOUND:.0%}: launches and the gaps between kernels take the rest, and their number decides."
    )


def _range_text(shares: Sequence[float]) -> str:
    """Return the smallest and the largest of sorted shares as text."""
    first, last = f"{shares[0]:.0%}", f"{shares[-1]:.0%}"
    return first if first == last else f"{first} to {last}"


def gpu_time_table(tables: Tables) -> str:
    """Return a table of the GPU's own time beside the call's, and of what ran in it; "" if no GPU was counted."""
    rows = []
    for row in _gpu_programs(tables):
        unknown = math.isnan(row["share"])
        bound = "–" if unknown else "its kernels" if row["share"] >= BOUND else "launches"
        place = [f"{row['workload']}, {row['pass']}", engine_name(row), row["projection"]]
        times = [seconds(row["call_s"]), seconds(row["device_s"]), "–" if unknown else f"{row['share']:.0%}", bound]
        graphs = "not known" if pd.isna(row["graph_launches"]) else row["graph_launches"]
        rows.append([*place, *times, row["device_kinds"], graphs])
    names = ["", "", "", "call", "GPU's own", "share", "decided by", "kernels of a call", "graph launches"]
    return table(names, rows) if rows else ""


def format_by_form(forms: dict[str, Row], column: str, text: Callable[[Any], str], names: Sequence[str]) -> str:
    """Return a column of each of the named forms' rows as text, side by side; a dash where none has a value."""
    values = [forms[name][column] if name in forms else None for name in names]
    if all(value is None or pd.isna(value) for value in values):
        return "–"
    return " · ".join("–" if value is None or pd.isna(value) else text(value) for value in values)


def _layer_kernels(tables: Tables) -> str:
    """List the kernels that ran in each framework's own layer, which show whether the layer has a fused kernel."""
    frame = tables.evidence[(tables.evidence.recurrence == "layer") & (tables.evidence.projection == "none")]
    cells = tables.times.drop_duplicates("workload").set_index("workload")["cell"]
    lines = []
    for keys, part in frame.groupby(ENGINE, sort=True):
        row = part.sort_values(["pass", "workload", "threads"]).iloc[0]
        kernels = sorted(
            (kernel.partition("×") for kernel in filter(None, row.kernel_names.split("; "))),
            key=lambda kernel: (-int(kernel[0]), kernel[2]),
        )
        listing = ", ".join(f"{count} {name}" for count, _, name in kernels[:MOST])
        lines.append(f"- {execution_name(*keys)} ({row.workload}, {cells[row.workload]}, {row['pass']}): {listing}")
    return "What ran most often in the framework's own layer, unprojected:\n\n" + "\n".join(lines) if lines else ""


def _missing_counts(tables: Tables) -> str:
    """List what could not be counted, one line for each reason."""
    frame = tables.evidence[tables.evidence.missing != ""]
    lines = []
    for (*keys, missing), part in frame.groupby([*ENGINE, "missing"], sort=True):
        lines.append(f"- {execution_name(*keys)} ({len(part)} programs): {missing}")
    return "What could not be counted:\n\n" + "\n".join(lines) if lines else ""
