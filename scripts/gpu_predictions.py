"""Predict the calls of each form on a GPU from counts, and write them down before any GPU has run.

    python scripts/gpu_predictions.py COUNTS.jsonl --run reports/2026-11-26-amd-epyc-2-cores --out FOLDER

COUNTS.jsonl comes from scripts/gpu_counts.py. The run's evidence has the operations that eager frameworks dispatch.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import launch_model as model
from harness.analysis.launch_model import CARDS, CONSTANTS, Count, Launched, Operations
from harness.analysis.loading import load
from impls.evidence import Product

SHAPES = re.compile(r"(\d+)×(?:(\d+)·)?\[(\d+)×(\d+)×(\d+)\]")
PROJECTIONS = ("none", "in_loop", "per_step", "batched", "bmm")
KEY = ("framework", "execution", "workload", "pass", "recurrence")
NOT_LAUNCHED = ("broadcast_tensors",)  # operations that make a view
NOT_PREDICTED = {
    ("tf", "*", "*"): "TensorFlow is not on the machine that this is for, and its GPU programs were not counted",
    ("torch", "inductor-batched", "*"): "which products its pass joins on a GPU was not counted",
    ("torch", "inductor", "scan"): "no count is committed: its scan is a prototype that the CPU run did not measure",
    ("torch", "cudagraph", "scan"): "no count is committed: its scan is a prototype that the CPU run did not measure",
    ("torch", "*", "layer"): "on a GPU it is one call of cuDNN, whose kernels were not counted",
    ("jax", "xla", "layer"): "not asked for: it is a scan of its own",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = list(map(json.loads, options.counts.read_text().splitlines()))
    evidence = load(options.run).evidence
    c = model.draws()
    table = [*xla_rows(rows, c), *(row for card in ("h100",) for row in evidence_rows(evidence, card, c))]
    table += [
        dict(zip(("framework", "execution", "recurrence"), key, strict=True)) | {"not_predicted": reason}
        for key, reason in NOT_PREDICTED.items()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    pd.DataFrame(table).assign(code_commit=commit).to_csv(options.out / "predictions.csv", index=False)
    constants = [(name, r.low, r.high, "even" if r.even else "log", r.source) for name, r in CONSTANTS.items()]
    constants.append(("unmodelled", *model.UNMODELLED[:2], "log", model.UNMODELLED.source))
    columns = ["constant", "low", "high", "drawn", "source"]
    pd.DataFrame(constants, columns=columns).to_csv(options.out / "constants.csv", index=False)


def xla_rows(rows: list[dict[str, Any]], c: model.Draws) -> Iterator[dict[str, Any]]:
    """Yield the predictions of compiled JAX. Half of the draws take Triton's products, the other half cuBLASLt's."""
    frame = pd.DataFrame(rows)
    for key, group in frame.groupby(["card", "xla", "workload", "pass", "recurrence"], sort=False):
        card, xla, workload, pass_, recurrence = key
        forms = {
            projection: {row["triton"]: row for row in form.to_dict("records")}
            for projection, form in group.groupby("projection", sort=False)
        }
        full = {"framework": "jax", "execution": "xla", "workload": workload, "pass": pass_, "recurrence": recurrence}

        def time(by_triton: dict[bool, Any], card: str = card) -> Any:
            times = {
                triton: model.compiled_us(count_of(row), CARDS[card], c, "jax_call_us")
                for triton, row in by_triton.items()
            }
            return np.where(np.arange(model.DRAWS) % 2, times[True], times[False])

        counts = {projection: summary(by_triton) for projection, by_triton in forms.items()}
        yield from form_rows(card, full, {p: time(form) for p, form in forms.items()}, counts, xla)


def count_of(row: dict[str, Any]) -> Count:
    """Return the count of one compiled program."""
    launched = tuple(
        Launched(
            each["alike"] * each["times"],
            bool(each["graph"]),
            Product(1, *each["product"]) if each["product"] else None,
            each["moved_bytes"],
            each["sliced"],
        )
        for each in row["launches"]
    )
    return Count(launched, sum(row["graphs"]), sum(each["alike"] for each in row["launches"] if each["graph"]))


def summary(by_triton: dict[bool, Any]) -> dict[str, str]:
    """Return the counts of a program with Triton's products and with cuBLASLt's, as texts `with/without`."""
    texts: dict[str, str] = {}
    measures: dict[str, Callable[[Count], float]] = {
        "host_launches": lambda count: sum(each.times for each in count.launched if not each.graph),
        "graphs": lambda count: count.graphs,
        "graph_kernels": lambda count: sum(each.times for each in count.launched if each.graph),
        "products": lambda count: sum(each.times for each in count.launched if each.product),
    }
    for name, measure in measures.items():
        values = [f"{measure(count_of(by_triton[triton])):.0f}" for triton in (True, False)]
        texts[name] = "/".join(dict.fromkeys(values))
    return texts


def evidence_rows(evidence: pd.DataFrame, card: str, c: model.Draws) -> Iterator[dict[str, Any]]:
    """Yield the predictions of eager JAX, eager PyTorch, Inductor and its CUDA graphs, from a CPU's evidence."""
    rows = evidence[(evidence.threads == 1) & (evidence.recurrence == "unrolled") & (evidence.precision == "fp32")]
    for (framework, execution, workload, pass_), group in rows.groupby(["framework", "execution", "workload", "pass"]):
        forms = {row["projection"]: work_of(row, group) for row in group.to_dict("records")}
        for target, time in predictors(framework, execution, pass_).items():
            times = {p: time(work, CARDS[card], c) for p, work in forms.items() if p in PROJECTIONS}
            full = {"framework": framework, "execution": target, "workload": workload, "pass": pass_}
            counts = {
                p: {"host_launches": str(work.operations), "products": str(sum(x.times for x in work.products))}
                for p, work in forms.items()
            }
            yield from form_rows(card, full | {"recurrence": "unrolled"}, times, counts, "CPU evidence")


def work_of(row: dict[str, Any], group: pd.DataFrame) -> Operations:
    """Return what a form dispatches, and what its recurrence alone does."""
    none = group[group.projection == "none"].iloc[0]
    products = tuple(
        Product(int(times), int(batch or 1), int(m), int(k), int(n))
        for times, batch, m, k, n in SHAPES.findall(row["shapes"])
    )
    return Operations(launched_operations(row), launched_operations(dict(none)), products)


def launched_operations(row: dict[str, Any]) -> int:
    """Return the operations of a form that launch something."""
    views = sum(int(n) for n, name in re.findall(r"(\d+)×(\w+)", row["kernel_names"]) if name in NOT_LAUNCHED)
    return int(row["kernels"]) - views


def predictors(framework: str, execution: str, pass_: str) -> dict[str, Callable[..., Any]]:
    """Return how each execution's time follows from the work counted in `execution`."""
    if (framework, execution) == ("jax", "eager"):
        operation = f"jax_eager_{pass_}_op_us"
        return {"eager": lambda w, card, c: model.eager_us(w, card, c, operation, "jax_eager_share", "jax_call_us")}
    if (framework, execution) == ("torch", "eager"):
        operation = "torch_op_us" if pass_ == "forward" else "torch_train_op_us"
        return {"eager": lambda w, card, c: model.eager_us(w, card, c, operation, "torch_share", "torch_call_us")}
    if (framework, execution) == ("torch", "inductor"):
        call = "inductor_call_us" if pass_ == "forward" else "inductor_train_us"
        return {
            "inductor": lambda w, card, c: model.compiled_us(
                inductor_count(w, c, graphs=0), card, c, call, "inductor_launch_us"
            ),
            "cudagraph": lambda w, card, c: model.compiled_us(
                inductor_count(w, c, graphs=1 if pass_ == "forward" else 2), card, c, "cudagraph_call_us"
            ),
        }
    return {}


def inductor_count(work: Operations, c: model.Draws, graphs: int) -> Count:
    """Return what Inductor launches: the CPU's kernels, of which those of products with K = 1 may vanish in others."""
    products = [
        Launched(p.times * (c["k_one"] if p.k == 1 else 1), bool(graphs), p if p.k > 1 else None, 0.0)
        for p in work.products
    ]
    other = work.operations - sum(p.times for p in work.products)
    return Count((*products, Launched(other, bool(graphs), None, 0.0)), graphs, 0)


def form_rows(
    card: str, key: dict[str, str], times: dict[str, Any], counts: dict[str, dict[str, str]], basis: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each form: the range of its time, and of its time over the batched form's."""
    noisy = {p: time * model.unmodelled((card, *key.values(), p)) for p, time in times.items()}
    for projection, time in noisy.items():
        row: dict[str, Any] = {"card": card, "precision": "fp32", **key, "projection": projection}
        row |= dict(zip(("ratio_low", "ratio_mid", "ratio_high"), rounded(time / noisy["batched"], 3), strict=True))
        row |= dict(zip(("call_low_us", "call_mid_us", "call_high_us"), rounded(time, 1), strict=True))
        if projection == "batched":
            row |= dict.fromkeys(("ratio_low", "ratio_mid", "ratio_high"))
        yield row | counts[projection] | {"counted_by": basis}


def rounded(values: Any, digits: int) -> list[float]:
    """Return low, middle and high of draws, rounded."""
    return [round(value, digits) for value in model.percentiles(values)]


if __name__ == "__main__":
    main()
