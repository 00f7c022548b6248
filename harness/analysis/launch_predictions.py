"""Predict every form's call on a GPU from counts: XLA's for compiled JAX, a CPU's evidence for what is dispatched.

Pure functions of records. The model and its constants are in harness.analysis.launch_model.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import launch_model as model
from harness.analysis.launch_model import CARDS, Card, Count, Draws, LaunchGroup, Operations
from harness.records.counts import CountRecord
from impls.evidence import Product

SHAPES = re.compile(r"(\d+)×(?:(\d+)·)?\[(\d+)×(\d+)×(\d+)\]")
PROJECTIONS = ("none", "in_loop", "per_step", "batched", "bmm")
OF_A_CPU = "CPU evidence"
VIEWS = ("broadcast_tensors",)  # operations that launch nothing
NOT_PREDICTED = {  # framework, execution, recurrence -> the reason
    ("tf", "*", "*"): "what TensorFlow launches on a GPU was not counted",
    ("torch", "inductor-batched", "*"): "which products its pass joins on a GPU was not counted",
    ("torch", "inductor", "scan"): "no count is committed: its scan is a prototype that the CPU run did not measure",
    ("torch", "cudagraph", "scan"): "no count is committed: its scan is a prototype that the CPU run did not measure",
    ("torch", "*", "layer"): "on a GPU it is one call of cuDNN, whose kernels were not counted",
    ("jax", "xla", "layer"): "it was not asked for: it is a scan of its own",
}
Predictor = Callable[[Operations, Card, Draws], Any]


def predictions(records: Iterable[CountRecord], evidence: pd.DataFrame | None, cards: Iterable[str]) -> pd.DataFrame:
    """Return a row for each form, and one for each kind of form that is not predicted, with the reason.

    `evidence`: that of a run on a CPU (harness.analysis.loading), or None to leave out what it is needed for.
    """
    draws = model.draws()
    rows = list(xla_rows(records, draws))
    if evidence is not None:
        rows += [row for card in cards for row in evidence_rows(evidence, card, draws)]
    names = ("framework", "execution", "recurrence")
    reasons = [dict(zip(names, key, strict=True)) | {"not_predicted": why} for key, why in NOT_PREDICTED.items()]
    return pd.DataFrame([*rows, *reasons])


def constants() -> pd.DataFrame:
    """Return every constant of the model: its range, how it is drawn, and its source."""
    ranges = model.CONSTANTS | {"unmodelled": model.UNMODELLED}
    rows = [(name, r.low, r.high, "even" if r.even else "log", r.source) for name, r in ranges.items()]
    return pd.DataFrame(rows, columns=["constant", "low", "high", "drawn", "source"])


def xla_rows(records: Iterable[CountRecord], draws: Draws) -> Iterator[dict[str, Any]]:
    """Yield the predictions of compiled JAX. Half of the draws take Triton's products, the other half cuBLASLt's.

    A loop whose batched form was not counted, or any form only one of the two ways, gives no row.
    """
    groups: dict[tuple[str, ...], dict[str, dict[bool, CountRecord]]] = {}
    for record in records:
        if not record.reason:
            place = (record.card, record.xla, record.workload, record.pass_, record.recurrence)
            groups.setdefault(place, {}).setdefault(record.projection, {})[record.triton] = record
    for (card, xla, workload, pass_, recurrence), forms in groups.items():
        complete_forms = {projection: form for projection, form in forms.items() if len(form) == 2}
        if "batched" in complete_forms:
            key = {"framework": "jax", "execution": "xla", "workload": workload, "pass": pass_}
            times = {projection: _either_way(form, CARDS[card], draws) for projection, form in complete_forms.items()}
            counts = {projection: summary(form) for projection, form in complete_forms.items()}
            yield from form_rows(card, key | {"recurrence": recurrence}, times, counts, xla)


def _either_way(form: Mapping[bool, CountRecord], card: Card, draws: Draws) -> Any:
    """Return the draws of a form's time, every other one with Triton's products."""
    times = {triton: model.compiled_us(count_of(form[triton]), card, draws, "jax_call_us") for triton in form}
    return np.where(np.arange(len(times[True])) % 2, times[True], times[False])


def count_of(record: CountRecord) -> Count:
    """Return the count of one compiled program."""
    groups = tuple(
        LaunchGroup(
            launch.total,
            bool(launch.graph),
            Product(1, *launch.product) if launch.product else None,
            launch.moved_bytes,
            launch.sliced,
        )
        for launch in record.launches
    )
    return Count(groups, sum(record.graphs), sum(launch.alike for launch in record.launches if launch.graph))


def summary(form: Mapping[bool, CountRecord]) -> dict[str, str]:
    """Return the counts of a program, as texts `with Triton/with cuBLASLt` where the two differ."""
    measures: dict[str, Callable[[CountRecord], int]] = {
        "host_launches": lambda record: record.from_host,
        "graphs": lambda record: sum(record.graphs),
        "graph_kernels": lambda record: record.in_graphs,
        "products": lambda record: sum(record.products.values()),
    }
    values = {name: [str(measure(form[triton])) for triton in (True, False)] for name, measure in measures.items()}
    return {name: "/".join(dict.fromkeys(texts)) for name, texts in values.items()}


def evidence_rows(evidence: pd.DataFrame, card: str, draws: Draws) -> Iterator[dict[str, Any]]:
    """Yield the predictions of eager JAX, eager PyTorch, Inductor and its CUDA graphs, from a CPU's evidence."""
    rows = evidence[(evidence.threads == 1) & (evidence.recurrence == "unrolled") & (evidence.precision == "fp32")]
    for (framework, execution, workload, pass_), group in rows.groupby(["framework", "execution", "workload", "pass"]):
        forms = {row["projection"]: work_of(row, group) for row in group.to_dict("records")}
        key = {"framework": framework, "workload": workload, "pass": pass_, "recurrence": "unrolled"}
        counts = {
            projection: {"host_launches": str(work.operations), "products": str(sum(p.times for p in work.products))}
            for projection, work in forms.items()
        }
        for target, time in predictors(str(framework), str(execution), str(pass_)).items():
            times = {p: time(work, CARDS[card], draws) for p, work in forms.items() if p in PROJECTIONS}
            yield from form_rows(card, key | {"execution": target}, times, counts, OF_A_CPU)


def work_of(row: Mapping[Any, Any], group: pd.DataFrame) -> Operations:
    """Return what a form dispatches, and what the recurrence of its group dispatches alone."""
    none = group[group.projection == "none"].iloc[0]
    products = tuple(
        Product(int(times), int(batch or 1), int(m), int(k), int(n))
        for times, batch, m, k, n in SHAPES.findall(row["shapes"])
    )
    return Operations(launched_operations(row), launched_operations(none.to_dict()), products)


def launched_operations(row: Mapping[Any, Any]) -> int:
    """Return the operations of a form that launch something."""
    views = sum(int(n) for n, name in re.findall(r"(\d+)×(\w+)", row["kernel_names"]) if name in VIEWS)
    return int(row["kernels"]) - views


def predictors(framework: str, execution: str, pass_: str) -> dict[str, Predictor]:
    """Return how the time of each execution on a GPU follows from the work counted in `execution` on a CPU."""
    forward = pass_ == "forward"
    match framework, execution:
        case "jax", "eager":
            names = (f"jax_eager_{pass_}_op_us", "jax_eager_share", "jax_call_us")
        case "torch", "eager":
            names = ("torch_op_us" if forward else "torch_train_op_us", "torch_share", "torch_call_us")
        case "torch", "inductor":
            graphs = 1 if forward else 2
            call = "inductor_call_us" if forward else "inductor_train_us"
            return {
                "inductor": partial(_inductor_us, graphs=0, call=call),
                "cudagraph": partial(_inductor_us, graphs=graphs, call="cudagraph_call_us"),
            }
        case _:
            return {}
    operation, share, call = names
    return {"eager": partial(model.eager_us, operation=operation, share=share, call=call)}


def _inductor_us(work: Operations, card: Card, draws: Draws, graphs: int, call: str) -> Any:
    return model.compiled_us(inductor_count(work, draws, graphs), card, draws, call, "inductor_launch_us")


def inductor_count(work: Operations, draws: Draws, graphs: int) -> Count:
    """Return what Inductor launches: the CPU's kernels, of which those of products with K = 1 may vanish in others."""
    products = [
        LaunchGroup(p.times * (draws["k_one"] if p.k == 1 else 1), bool(graphs), p if p.k > 1 else None, 0.0)
        for p in work.products
    ]
    other_kernels = work.operations - sum(p.times for p in work.products)
    return Count((*products, LaunchGroup(other_kernels, bool(graphs), None, 0.0)), graphs, 0)


def form_rows(
    card: str, key: dict[str, Any], times: dict[str, Any], counts: dict[str, dict[str, str]], basis: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each form: the range of its time, and of its time over the batched form's."""
    order = ("framework", "execution", "workload", "pass", "recurrence")
    key = {name: key[name] for name in order}
    form_times = {p: time * model.unmodelled((card, *key.values(), p), len(time)) for p, time in times.items()}
    for projection, time in form_times.items():
        row: dict[str, Any] = {"card": card, "precision": "fp32", **key, "projection": projection}
        ratio = dict.fromkeys(("ratio_low", "ratio_mid", "ratio_high"), None)
        if projection != "batched":
            ratio = dict(zip(ratio, _rounded(time / form_times["batched"], 3), strict=True))
        call = dict(zip(("call_low_us", "call_mid_us", "call_high_us"), _rounded(time, 1), strict=True))
        yield row | ratio | call | counts[projection] | {"counted_by": basis}


def _rounded(values: Any, digits: int) -> list[float]:
    return [round(value, digits) for value in model.percentiles(values)]
