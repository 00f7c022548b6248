"""From records to tables: times, gaps, contrasts, identity, evidence. Pure: the same records, the same tables."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import stats
from harness.measure import BATCHED, TWIN, median_s
from harness.records import Record, latest
from harness.study import Study
from harness.verify import form_of, holds
from impls import trace
from impls.evidence import ITEM_BYTES, Product, flops, issued, moved_bytes

SEAT = ["framework", "device", "threads", "execution", "precision"]
ENGINE = ["framework", "execution", "device", "precision"]  # what programs are run by, whatever their threads
SIZES = ["cell", "B", "T", "I", "H", "O"]
ARM = ["recurrence", "projection"]
TIMES = [*SEAT, "workload", *SIZES, "pass", *ARM, "process", "median_s", "rounds", "first_call_s", "status", "reason"]
GAP_KEYS = [*SEAT, "workload", "pass", "recurrence", "contender"]
GAPS = [*GAP_KEYS, "baseline", "ratio", "ci_low", "ci_high", "processes", "rounds", "verdict", "trusted", "needs"]
IDENTITY_KEYS = [*SEAT, "workload", "pass", *ARM, "quantity"]
ERRORS = ["fp64_rel_error", "rel_error", "bound", "bitwise_equal_to_batched", "max_ulp", "status"]
IDENTITY = [*IDENTITY_KEYS, *ERRORS]
CONTENDERS = ("in_loop", "per_step", "bmm", "vmap", "library", "time_distributed", TWIN)
LOOPS = ("unrolled", "scan")  # recurrences whose loop is ours, so that something can be projected inside it
OWN = "layer_batched"  # the framework's own layer, projected once
EVIDENCE = [
    *SEAT, "workload", "pass", *ARM, "products", "shapes", "flops", "product_bytes", "kernels", "kernel_names",
    "fusions", "loops", "temp_bytes", "device_ns", "device_kernels", "device_kinds", "graph_launches", "missing",
]  # fmt: skip
COUNTS = ["products", "flops", "product_bytes", "kernels", "fusions", "temp_bytes", "device_kernels", "graph_launches"]
VARIABLES = [*SEAT, "workload", "pass", *ARM, "variable", "shape"]
Pair = tuple[str, str, str, str]  # recurrence and projection of the contender; the baseline's name, and its arm
Found = dict[tuple[Any, ...], tuple[stats.Sample, float]]  # (*GAP_KEYS' values, baseline) -> its sample, its rounds


class Tables:
    """The tables of one run; `heading` is its first record and `study` the study in it."""

    def __init__(self, records: list[Record]) -> None:
        self.heading = records[0]
        self.study = Study.model_validate(self.heading["study"])
        done = sorted(latest(records), key=lambda r: [str(r[name]) for name in (*SEAT, "replicate", "pass")])
        self.checks = [record for record in done if record["kind"] == "check"]
        wrong = _wrong_in_fp64(self.checks)
        self.blocks = [_withheld(record, wrong) for record in done if record["kind"] == "block"]
        self.times = _times(self)
        found = samples(self.blocks, lambda arms: chain(_against_batched(arms), _otherwise(arms)))
        self.gaps = _trusted(_compared(self.study, {k: v for k, v in found.items() if k[-1] == BATCHED}))
        others = _compared(self.study, {k: v for k, v in found.items() if k[-1] != BATCHED})
        self.contrasts = _also_trusted(others, self.gaps)
        self.identity = _identity(self)
        self.evidence = _evidence(self)
        self.variables = _variables(self)

    def save(self, folder: Path) -> None:
        """Write every table as a CSV file of its name; that of variables only where a program keeps its own."""
        for name in ("times", "gaps", "contrasts", "identity", "evidence", "variables"):
            if name != "variables" or not self.variables.empty:
                getattr(self, name).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def _wrong_in_fp64(checks: list[Record]) -> dict[tuple[str, ...], str]:
    """Framework, device, execution, pass and arm -> why its fp64 verification failed."""
    return {
        (*_check_key(check), name): f"in fp64 {arm['reason']}"
        for check in checks
        for name, arm in check["arms"].items()
        if arm["status"] == "wrong"
    }


def _check_key(record: Record) -> tuple[str, ...]:
    """What a verification in fp64 speaks for, but for the arm."""
    return record["framework"], record["device"], record["execution"], record["workload"]["cell"], record["pass"]


def _withheld(record: Record, wrong: dict[tuple[str, ...], str]) -> Record:
    """The block without the times of arms that failed the fp64 gate."""
    arms = {}
    for name, arm in record["arms"].items():
        reason = wrong.get((*_check_key(record), name.replace(TWIN, BATCHED)))
        withheld: Record = {"status": "wrong", "reason": reason, "samples_ns": [], "first_call_ns": None}
        arms[name] = arm | withheld if reason else arm
    return record | {"arms": arms}


def _place(record: Record) -> dict[str, Any]:
    workload = record["workload"]
    sizes = {size: workload[size] for size in SIZES}
    return {name: record[name] for name in SEAT} | {"workload": workload["name"]} | sizes | {"pass": record["pass"]}


def _block_key(record: Record) -> tuple[Any, ...]:
    """The values of SEAT, and the workload and pass."""
    return (*(record[name] for name in SEAT), record["workload"]["name"], record["pass"])


@cache
def _arm(name: str) -> dict[str, str]:
    recurrence, _, projection = name.partition("_")
    return {"recurrence": recurrence, "projection": projection}


def _times(tables: Tables) -> pd.DataFrame:
    """A row for each arm and process measured, and one for each cell that was not, with its reason."""
    rows: list[dict[str, Any]] = []
    for record in tables.blocks:
        place = _place(record) | {"process": record["replicate"]}
        rows.extend(place | _arm(name) | _time(record, arm) for name, arm in record["arms"].items())
    keys = [*SEAT, "workload", "pass", *ARM]
    seen = {tuple(row[key] for key in keys) for row in rows}
    budget = tables.study.budget_s
    why = f"the budget of {budget:g} s ended first" if budget else "the run was interrupted"
    unseen = (cell for cell in tables.heading["cells"] if tuple(cell[key] for key in keys) not in seen)
    rows.extend(cell | {"status": "not_reached", "reason": why} for cell in unseen)
    rows.extend(tables.heading["absent"])
    rows.extend(m | {"status": "unavailable"} for m in tables.heading["missing"])
    return pd.DataFrame(rows, columns=TIMES).sort_values([*keys, "process"], kind="stable", ignore_index=True)


def _time(record: Record, arm: dict[str, Any]) -> dict[str, Any]:
    """Times in seconds. A first call is a result only in replicate 0, whose caches were empty."""
    cold = record["replicate"] == 0 and record["key"].endswith("-0") and arm["first_call_ns"] is not None
    return {
        "median_s": median_s(arm) if arm["samples_ns"] and arm["status"] == "ok" else None,
        "rounds": len(arm["samples_ns"]) or None,
        "first_call_s": arm["first_call_ns"] / 1e9 if cold else None,
        "status": arm["status"],
        "reason": arm["reason"],
    }


def _against_batched(arms: Iterable[str]) -> Iterator[Pair]:
    """Every way to project against batched, after the same recurrence."""
    for name in arms:
        recurrence, projection = _arm(name).values()
        if projection in CONTENDERS:
            yield recurrence, projection, BATCHED, f"{recurrence}_{BATCHED}"


def _otherwise(arms: Iterable[str]) -> Iterator[Pair]:
    """T products after the loop against T inside it; and the wrapper's form against the framework's own layer."""
    for recurrence in LOOPS:
        yield recurrence, "per_step", "in_loop", f"{recurrence}_in_loop"
        yield recurrence, "in_loop", OWN, OWN


def samples(blocks: list[Record], pairs: Callable[[Iterable[str]], Iterator[Pair]] = _against_batched) -> Found:
    """A gap's sample and the median of its rounds, for every gap measured."""
    found: dict[tuple[Any, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
    for record in blocks:
        place = _block_key(record)
        per_call = {name: _per_call(arm) for name, arm in record["arms"].items() if _good(arm)}
        for recurrence, projection, baseline, base in pairs(per_call):
            if (name := f"{recurrence}_{projection}") in per_call and base in per_call:
                found.setdefault((*place, recurrence, projection, baseline), []).append(
                    (per_call[name], per_call[base])
                )
    return {
        key: (stats.sample(processes), float(statistics.median(len(times) for times, _ in processes)))
        for key, processes in found.items()
    }


def _compared(study: Study, found: Found) -> pd.DataFrame:
    """A row for each pair, with its verdict."""
    before = stats.prior([sample for sample, _ in found.values()])
    rows = []
    for key, (sample, rounds) in found.items():
        gap = stats.gap(sample, study.margin, before)
        known = stats.parts(sample, rounds, before)
        wanted = stats.processes(known, rounds, study.target) if known else math.nan
        row = dict(zip([*GAP_KEYS, "baseline"], key, strict=True)) | {"gap": gap, "processes": gap.processes}
        row["needs"] = max(0, wanted - gap.processes) if known else math.nan
        rows.append(row | {"ratio": gap.ratio, "ci_low": gap.low, "ci_high": gap.high, "rounds": rounds})
    frame = pd.DataFrame(rows, columns=[*GAPS, "gap"])
    frame = frame.sort_values([*GAP_KEYS, "baseline"], kind="stable", ignore_index=True)
    frame["verdict"] = frame["verdict"].astype(object)
    for _, part in frame.groupby([frame.workload, frame["pass"], _question(frame)], sort=False):
        frame.loc[part.index, "verdict"] = stats.verdicts(list(part.gap))
    return frame.drop(columns="gap")


def _question(frame: pd.DataFrame) -> pd.Series:
    """What Holm's correction is over, within a workload and pass: the controls, or gaps that answer one question."""
    loops = frame.recurrence.isin(LOOPS)
    named = frame.recurrence.where(~loops, "loop") + " " + frame.baseline
    return named.where(frame.contender != TWIN, TWIN)


def _trusted(frame: pd.DataFrame) -> pd.DataFrame:
    """The gaps, and whether the twin of their block is 1."""
    twins = frame[frame.contender.eq(TWIN)].set_index([k for k in GAP_KEYS if k != "contender"])
    # A 95% interval misses 1 in one twin of twenty by chance; the ones that miss are marked all the same.
    holds = (twins.ci_low <= 1) & (twins.ci_high >= 1)
    keys = frame[[k for k in GAP_KEYS if k != "contender"]].itertuples(index=False, name=None)
    frame["trusted"] = [bool(holds.get(key, default=False)) for key in keys]
    return frame


def _also_trusted(frame: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Contrasts, and whether the twins are 1 of the recurrence, and of the layer where that is the baseline."""
    place = [*SEAT, "workload", "pass", "recurrence"]
    twins = gaps[gaps.contender == TWIN].set_index(place).trusted
    own = frame.assign(recurrence=frame.recurrence.where(frame.baseline != OWN, "layer"))
    sides = [
        [bool(twins.get(key, default=False)) for key in side[place].itertuples(index=False, name=None)]
        for side in (frame, own)
    ]
    return frame.assign(trusted=[one and other for one, other in zip(*sides, strict=True)])


def _evidence(tables: Tables) -> pd.DataFrame:
    """A row for each cell whose calls were counted."""
    rows = [_place(record) | _arm(name) | _counted(record, arm) for record, name, arm in _first_counted(tables)]
    frame = pd.DataFrame(rows, columns=EVIDENCE)
    frame[COUNTS] = frame[COUNTS].astype("Int64")
    return frame.sort_values([*SEAT, "workload", "pass", *ARM], kind="stable", ignore_index=True)


def _variables(tables: Tables) -> pd.DataFrame:
    """A row for each variable of each program that keeps its own, in the program's order; shapes as [101×100]."""
    rows = [
        _place(record) | _arm(arm_name) | {"variable": name, "shape": f"[{'×'.join(map(str, shape))}]"}
        for record, arm_name, arm in _first_counted(tables)
        for name, shape in arm["evidence"].get("variables", ())
    ]
    frame = pd.DataFrame(rows, columns=VARIABLES)
    return frame.sort_values([*SEAT, "workload", "pass", *ARM], kind="stable", ignore_index=True)


def _first_counted(tables: Tables) -> Iterator[tuple[Record, str, dict[str, Any]]]:
    """Record, name and arm of each cell whose calls were counted, from the first process that did."""
    seen = set()
    for record in tables.blocks:
        for name, arm in record["arms"].items():
            key = (*_block_key(record), name)
            if arm.get("evidence") and arm["status"] == "ok" and key not in seen:
                seen.add(key)
                yield record, name, arm


def _counted(record: Record, arm: dict[str, Any]) -> dict[str, Any]:
    """An arm's evidence as a row: what is missing is empty, and says why in the last column."""
    found = arm["evidence"]
    missing = found["missing"]
    products = [Product(*product) for product in found["products"]]
    ran = found.get("device_kernels", {})  # records of before GPUs have none
    known = not {"everything", "products"} & missing.keys()
    names = not {"everything", "kernels"} & missing.keys()
    return {
        "products": issued(products) if known else None,
        "shapes": "; ".join(map(str, products)),
        "flops": flops(products) if known else None,
        "product_bytes": moved_bytes(products, ITEM_BYTES[record["precision"]]) if known else None,
        "kernels": sum(found["kernels"].values()) if names else None,
        "kernel_names": "; ".join(f"{count}×{name}" for name, count in found["kernels"].items()),
        "fusions": found["fusions"],
        "loops": " ".join(map(str, found["loops"])),
        "temp_bytes": found["temp_bytes"],
        "device_ns": found.get("device_ns"),
        "device_kernels": sum(ran.values()) if ran else None,
        "device_kinds": "; ".join(f"{count}×{kind}" for kind, count in trace.kinds(ran).items()),
        "graph_launches": found.get("graph_launches"),
        "missing": "; ".join(f"{what}: {why}" for what, why in missing.items()),
    }


def usable(gaps: pd.DataFrame) -> pd.Series:
    """Which gaps may be counted: not those of a block whose A/A control missed 1."""
    return gaps.trusted | gaps.ci_low.isna()


def _good(arm: dict[str, Any]) -> bool:
    return arm["status"] == "ok" and bool(arm["samples_ns"])


def _per_call(arm: dict[str, Any]) -> np.ndarray:
    return np.array(arm["samples_ns"], float) / arm["calls"]


def _identity(tables: Tables) -> pd.DataFrame:
    """A row for each quantity of each arm: the worst over processes of its error against the oracle.

    `rel_error` and `bound` are of the row's precision; the fp64 error beside them is that of the same framework,
    device, execution, arm and pass.
    """
    in_fp64 = {(*_check_key(w.record), w.arm, w.quantity): w for w in _worst(tables.checks)}
    rows = []
    for w in _worst(tables.blocks):
        other = in_fp64.get((*_check_key(w.record), w.arm, w.quantity))
        in_its_own = w.found[1] if w.record["precision"] == "fp64" else None
        error = {"rel_error": w.found[1], "bound": w.bound[1]}
        error["fp64_rel_error"] = in_its_own if other is None else other.found[1]
        status = {"status": "ok" if w.ok and (other is None or other.ok) else "wrong"}
        apart = dict(zip(("bitwise_equal_to_batched", "max_ulp"), w.found[2:], strict=True))
        rows.append(_place(w.record) | _arm(w.arm) | {"quantity": w.quantity} | error | apart | status)
    frame = pd.DataFrame(rows, columns=IDENTITY)
    return frame.sort_values(IDENTITY_KEYS, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class Worst:
    """A quantity of a cell: its worst errors over the processes, in verify.Found's order."""

    record: Record
    arm: str
    quantity: str
    found: list[Any]
    bound: list[float]

    @property
    def ok(self) -> bool:
        return holds(self.found, self.bound)


def _worst(records: list[Record]) -> list[Worst]:
    """The worst of each quantity over the processes of a cell; the bounds are the cell's."""
    first: dict[tuple[Any, ...], Record] = {}
    every: dict[tuple[Any, ...], list[list[Any]]] = {}
    for record in records:
        place = _block_key(record)
        for name, arm in record["arms"].items():
            if _arm(name)["projection"] != TWIN:
                for quantity, found in arm.get("quantities", {}).items():
                    key = (*place, name, quantity)
                    first.setdefault(key, record)
                    every.setdefault(key, []).append(found)
    worst = []
    for key, record in first.items():
        name, quantity = key[-2:]
        worst.append(Worst(record, name, quantity, _joined(every[key]), record["bounds"][form_of(name)][quantity]))
    return worst


def _joined(every: list[list[Any]]) -> list[Any]:
    """What the processes found, at its worst."""
    rms, highest, bitwise, ulp = zip(*every, strict=True)
    same = None if None in bitwise else all(bitwise)
    return [max(rms), max(highest), same, None if None in ulp else max(ulp)]
