"""Tables from records: times, identity, evidence, and gaps (harness.analysis.gaps).

Pure: the same records give the same tables.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis import attribution, changes, frameworks, gaps, nodes, page_faults, peaks, rates, steps
from harness.analysis.gaps import ARM, block_key, parse_arm_name
from harness.analysis.operations import least_operations, work_from_evidence
from harness.errors import UsageError
from harness.records import gates
from harness.records.samples import median_call_s
from harness.records.schema import (
    ArmTiming,
    BlockRecord,
    CellRecord,
    ForecastRecord,
    RunHeaderRecord,
    RunRecord,
    SessionRecord,
)
from harness.records.store import budgets, header_of, latest_blocks, latest_records
from harness.study.configuration import CONFIG
from harness.study.parts import BATCHED, TWIN
from harness.verify.output_check import QuantityErrors, form_of, within_bounds
from impls import trace
from impls.evidence import ITEM_BYTES, Evidence
from impls.interface import Arm

SIZES = ["cell", "B", "T", "I", "H", "O"]
TIMES = [
    *CONFIG,
    "workload",
    *SIZES,
    "pass",
    *ARM,
    "process",
    "median_s",
    "rounds",
    "first_call_s",
    "status",
    "reason",
]
IDENTITY_KEYS = [*CONFIG, "workload", "pass", *ARM, "quantity"]
ERRORS = ["fp64_gate", "fp64_rel_error", "rel_error", "bound", "bitwise_equal_to_batched", "max_ulp", "status"]
IDENTITY = [*IDENTITY_KEYS, *ERRORS]
EVIDENCE = [
    *CONFIG, "workload", "pass", *ARM, "products", "shapes", "flops", "product_bytes", "kernels", "kernel_names",
    "fusions", "loops", "temp_bytes", "device_ns", "device_kernels", "device_kinds", "graph_launches", "library",
    "library_proof", "missing",
]  # fmt: skip
COUNTS = ["products", "flops", "product_bytes", "kernels", "fusions", "temp_bytes", "device_kernels", "graph_launches"]
ALWAYS = ("times", "gaps", "contrasts", "identity", "evidence")
CSV: dict[str, Any] = {
    "index": False,
    "lineterminator": "\n",
    "float_format": "%.7g",  # the last digits of a logarithm depend on the processor's instructions
}
WHERE_THERE_ARE = (
    *("changes", "steps", "frameworks", "rates", "faults", "variables", "costs", "swept", "slopes", "scores"),
    *("prototypes", "peaks", "fronts", "nodes"),
)  # fmt: skip
VARIABLES = [*CONFIG, "workload", "pass", *ARM, "variable", "shape"]
BLIND = ("jax", "tf")  # XLA launches no CUDA graph while it is profiled (impls.trace); some records hold 0
CountedArm = tuple[BlockRecord, str, Evidence]  # an arm whose calls were counted: its record, its name, the counts


class Tables:
    """Tables of one run.

    `header` is the run's first record, and `study` the study in it. `sessions` are that record and those of the
    sessions that resumed the run under other budgets. The gaps of what a framework marks as a prototype are in
    `prototypes` alone. `verification` is the records of a verification beside the run; `uncounted` says why they are
    not counted, if they are not.

    Tables that take long are made when they are first asked for, so that figures of the gaps can be drawn meanwhile.
    """

    def __init__(self, records: Sequence[RunRecord], verification: Sequence[RunRecord] = ()) -> None:
        self.header = header_of(records)
        later_sessions = [record for record in records if isinstance(record, SessionRecord)]
        self.sessions: list[RunHeaderRecord | SessionRecord] = [self.header, *later_sessions]
        self.study = self.header.whole_study
        verification_checks, self.uncounted = gates.fp64_checks(self.header, verification)
        self.checks = [*sorted(latest_blocks(records, "check"), key=_order), *verification_checks]
        self.gates = gates.Gates(self.checks)
        last_tries = sorted(latest_blocks(records, "block"), key=_order)
        last_keys = {record.key for record in last_tries}
        blocks = [record for record in records if isinstance(record, BlockRecord)]
        self.first_tries = [record for record in blocks if record.first_try and record.key not in last_keys]
        wrong = _fp64_failures(self.checks)
        with_guests = [_withhold_throttled(_withhold_wrong_times(record, wrong)) for record in last_tries]
        self.blocks = [record.without_guests() for record in with_guests]
        self.prototype_reasons = {prototype.key: prototype.reason for prototype in self.header.prototypes}
        blocks = gaps.drop_prototypes(with_guests, self.prototype_reasons)
        run_gaps, contrasts = gaps.gaps_and_contrasts(blocks, self.study)
        blocks = gaps.select_prototypes(with_guests, self.prototype_reasons)
        self.prototypes, _ = gaps.gaps_and_contrasts(blocks, self.study)
        swept = run_gaps.workload.isin({point.name for point in self.study.swept})
        self.gaps, self.swept = (run_gaps[rows].reset_index(drop=True) for rows in (~swept, swept))
        self.loops = {
            (framework, execution): recurrence
            for framework, executions in self.header.loops.items()
            for execution, recurrence in executions.items()
        }
        self.changes = changes.changes(self.gaps, self.loops, self.study.margin)
        over_none = contrasts.baseline == "none"
        self.contrasts, self._added = (contrasts[rows].reset_index(drop=True) for rows in (~over_none, over_none))
        self.forecasts = latest_records(records, ForecastRecord)
        counted_arms = list(_first_counted_arms(self.blocks))
        self.evidence = _evidence(counted_arms)
        self.variables = _variables(counted_arms)
        self.rates = rates.rates(self.blocks, self.study)
        self.peaks = peaks.peaks(sorted(latest_blocks(records, "peaks"), key=_order))

    @cached_property
    def times(self) -> pd.DataFrame:
        return _times(self)

    @cached_property
    def faults(self) -> pd.DataFrame:
        return page_faults.faults(self.blocks)

    @cached_property
    def fronts(self) -> pd.DataFrame:
        return peaks.fronts(self.peaks, pd.concat([self.gaps, self.prototypes]) if len(self.prototypes) else self.gaps)

    @cached_property
    def steps(self) -> pd.DataFrame:
        return steps.steps(gaps.drop_prototypes(self.blocks, self.prototype_reasons), self.study)

    @cached_property
    def frameworks(self) -> pd.DataFrame:
        """The comparison of frameworks at the study's workloads, without the sweep's points."""
        is_swept = self.times.workload.isin({point.name for point in self.study.swept})
        return frameworks.frameworks(self.times[~is_swept], self.loops, self.prototype_reasons, self.node_of)

    @cached_property
    def node_of(self) -> dict[int, str]:
        """Return process -> the node that it ran on; "" where the run was measured as a whole."""
        return {block.replicate: block.node for block in self.blocks}

    @cached_property
    def nodes(self) -> pd.DataFrame:
        """The nodes of a merged run, each against the others, at every gap; no rows where there is one node."""
        return nodes.nodes(gaps.drop_prototypes(self.blocks, self.prototype_reasons))

    @cached_property
    def costs(self) -> pd.DataFrame:
        return attribution.projection_costs(self.blocks, self.times, self._added)

    @cached_property
    def slopes(self) -> pd.DataFrame:
        return attribution.slopes(self.blocks, self.study)

    @cached_property
    def scores(self) -> pd.DataFrame:
        return attribution.forecast_scores(self.forecasts, pd.concat([self.gaps, self.swept]), self.costs)

    @cached_property
    def identity(self) -> pd.DataFrame:
        return _identity(self)

    def files(self, folder: Path) -> list[Callable[[], None]]:
        """Return functions that each write a table as a CSV file of its name, some only for tables that have rows."""
        names = [name for name in (*ALWAYS, *WHERE_THERE_ARE) if name in ALWAYS or not getattr(self, name).empty]
        return [partial(getattr(self, name).to_csv, folder.absolute() / f"{name}.csv", **CSV) for name in names]


def _order(record: BlockRecord) -> list[str]:
    """Return what the records of a run are sorted by."""
    return [*map(str, record.configuration.row().values()), str(record.replicate), record.pass_]


def _fp64_failures(checks: list[BlockRecord]) -> dict[tuple[str, ...], str]:
    """Return why the fp64 verification failed, by framework, device, execution, pass and arm."""
    return {
        gates.program_of(check, name): f"in fp64 {arm.reason}"
        for check in checks
        for name, arm in check.arms.items()
        if arm.status == "wrong"
    }


def _withhold_wrong_times(record: BlockRecord, wrong: dict[tuple[str, ...], str]) -> BlockRecord:
    """Return the block without the times of arms that failed the fp64 gate; itself where none did."""
    if not wrong:
        return record
    arms = {}
    for name, arm in record.arms.items():
        reason = wrong.get(gates.program_of(record, name.replace(TWIN, BATCHED)))
        arms[name] = arm.withheld("wrong", reason) if reason else arm
    return record.with_arms(arms)


def _withhold_throttled(record: BlockRecord) -> BlockRecord:
    """Return the block, without its times if the GPU was throttled: they are those of another machine."""
    if not record.throttled:
        return record
    reason = f"the GPU was throttled: {', '.join(record.throttled)}"
    return record.with_arms(
        {name: arm.withheld("refused", reason) if arm.has_times else arm for name, arm in record.arms.items()}
    )


def _cell_columns(record: BlockRecord) -> dict[str, Any]:
    sizes = {size: getattr(record.workload, size) for size in SIZES}
    return record.configuration.row() | {"workload": record.workload.name} | sizes | {"pass": record.pass_}


def _times(tables: Tables) -> pd.DataFrame:
    """Return a row for each arm and process measured, and one with its reason for each cell that was not measured."""
    rows: list[tuple[Any, ...]] = []  # in the order of TIMES, not by name, because there are many
    measured = set()
    for record in tables.blocks:
        place, key = tuple(_cell_columns(record).values()), block_key(record)
        is_cold = record.replicate == 0 and record.key.endswith("-0")
        for name, arm in record.arms.items():
            arm_key = tuple(parse_arm_name(name).values())
            rows.append((*place, *arm_key, record.replicate, *_timing_values(arm, is_cold)))
            measured.add((*key, *arm_key))
    keys = [*CONFIG, "workload", "pass", *ARM]
    budget = budgets(tables.sessions)[-1]
    reason = f"the budget of {budget:g} s ended first" if budget else "the run was interrupted"
    not_reached = (row for row in map(CellRecord.row, tables.header.cells) if tuple(map(row.get, keys)) not in measured)
    other_rows = [row | {"status": "not_reached", "reason": reason} for row in not_reached]
    other_rows += map(CellRecord.row, tables.header.absent)
    other_rows += [missing.model_dump() | {"status": "unavailable"} for missing in tables.header.missing]
    rows += [tuple(row.get(name) for name in TIMES) for row in other_rows]
    return pd.DataFrame(rows, columns=TIMES).sort_values([*keys, "process"], kind="stable", ignore_index=True)


def _timing_values(arm: ArmTiming, is_cold: bool) -> tuple[Any, ...]:
    """Return the values of TIMES from median_s on, in seconds.

    A first call is a result only where `is_cold`: in replicate 0, whose caches were empty.
    """
    return (
        median_call_s(arm) if arm.has_times else None,
        len(arm.samples_ns) or None,
        arm.first_call_ns / 1e9 if is_cold and arm.first_call_ns is not None else None,
        arm.status,
        arm.reason,
    )


def _evidence(counted_arms: list[CountedArm]) -> pd.DataFrame:
    """Return a row for each cell whose calls were counted.

    Raises UsageError where a count is too large for a table.
    """
    rows = [
        _cell_columns(record) | parse_arm_name(name) | _evidence_row(record, name, evidence)
        for record, name, evidence in counted_arms
    ]
    frame = pd.DataFrame(rows, columns=EVIDENCE)
    try:
        frame[COUNTS] = frame[COUNTS].astype("Int64")
    except (OverflowError, TypeError):
        raise UsageError("a record counts more of something than a table can hold") from None
    return frame.sort_values([*CONFIG, "workload", "pass", *ARM], kind="stable", ignore_index=True)


def _variables(counted_arms: list[CountedArm]) -> pd.DataFrame:
    """Return a row for each variable of each program that keeps its own, in the program's order.

    A shape is written as [101×100].
    """
    rows = [
        _cell_columns(record) | parse_arm_name(arm_name) | {"variable": name, "shape": f"[{'×'.join(map(str, shape))}]"}
        for record, arm_name, evidence in counted_arms
        for name, shape in evidence.variables
    ]
    frame = pd.DataFrame(rows, columns=VARIABLES)
    return frame.sort_values([*CONFIG, "workload", "pass", *ARM], kind="stable", ignore_index=True)


def _first_counted_arms(blocks: list[BlockRecord]) -> Iterator[CountedArm]:
    """Yield each cell whose calls were counted, from the first process that counted them."""
    keys = set()
    for record in blocks:
        place = block_key(record)
        for name, arm in record.arms.items():
            if arm.evidence and arm.status == "ok" and (key := (*place, name)) not in keys:
                keys.add(key)
                yield record, name, arm.evidence


def _evidence_row(record: BlockRecord, name: str, evidence: Evidence) -> dict[str, Any]:
    """Return an arm's evidence as a row.

    What is missing is empty, and the last column says why.
    """
    workload = record.workload.model_copy(update={"T": record.steps})
    least = least_operations(workload, record.pass_, Arm(**parse_arm_name(name)))
    call_work = work_from_evidence(evidence, least, ITEM_BYTES[record.configuration.precision])
    missing, device_kernels = call_work.missing, evidence.device_kernels
    kernels_counted = not {"everything", "kernels"} & missing.keys()
    return {
        "products": call_work.products,
        "shapes": "; ".join(map(str, evidence.products)),
        "flops": call_work.operations,
        "product_bytes": call_work.moved_bytes,
        "kernels": sum(evidence.kernels.values()) if kernels_counted else None,
        "kernel_names": "; ".join(f"{count}×{name}" for name, count in evidence.kernels.items()),
        "fusions": evidence.fusions,
        "loops": " ".join(map(str, evidence.loops)),
        "temp_bytes": evidence.temp_bytes,
        "device_ns": evidence.device_ns,
        "device_kernels": sum(device_kernels.values()) if device_kernels else None,
        "device_kinds": "; ".join(f"{count}×{kind}" for kind, count in trace.kinds(device_kernels).items()),
        "graph_launches": evidence.graph_launches if record.configuration.framework not in BLIND else None,
        "missing": "; ".join(f"{item}: {reason}" for item, reason in missing.items()),
        "library": "; ".join(f"{count}×{library}" for library, count in sorted(evidence.libraries.items())),
        "library_proof": "; ".join(f"{library}: {text}" for library, text in sorted(evidence.library_proof.items())),
    }


def _identity(tables: Tables) -> pd.DataFrame:
    """Return a row for each quantity of each arm: the worst over processes of its error against the oracle.

    `rel_error` and `bound` are of the row's precision. The fp64 error beside them is that of the same framework,
    device, execution, arm and pass. It is of the row's workload where that was verified at full size (`fp64_gate`).
    """
    fp64_errors: dict[tuple[str, ...], list[WorstErrors]] = {}
    for w in _worst_errors(tables.checks):
        fp64_errors.setdefault((*gates.program_of(w.record, w.arm), w.quantity), []).append(w)
    rows = []
    for w in _worst_errors(tables.blocks):
        others = fp64_errors.get((*gates.program_of(w.record, w.arm), w.quantity), [])
        errors: dict[str, Any] = {
            "rel_error": w.errors.worst,
            "bound": w.bound[1],
            "fp64_rel_error": _fp64_error(w, others),
        }
        errors["fp64_gate"] = tables.gates.of(w.record, w.arm)
        status = {"status": "ok" if all(worst.ok for worst in (w, *others)) else "wrong"}
        differences = {"bitwise_equal_to_batched": w.errors.is_bitwise_batched, "max_ulp": w.errors.ulp}
        rows.append(
            _cell_columns(w.record) | parse_arm_name(w.arm) | {"quantity": w.quantity} | errors | differences | status
        )
    frame = pd.DataFrame(rows, columns=IDENTITY).astype(dict.fromkeys(("fp64_rel_error", "rel_error", "bound"), float))
    return frame.sort_values(IDENTITY_KEYS, kind="stable", ignore_index=True)


def _fp64_error(w: "WorstErrors", others: list["WorstErrors"]) -> float | None:
    """Return the worst fp64 error of a quantity: of the same workload at full size, or else of any check there is."""
    name = w.record.workload.name
    same_size = [check for check in others if check.record.workload.name == name and gates.is_full_size(check.record)]
    itself = [w] if w.record.configuration.precision == "fp64" else []
    return max((check.errors.worst for check in same_size or others or itself), default=None)


@dataclass(frozen=True)
class WorstErrors:
    """Worst errors of a cell's quantity over the processes, and the bounds of its rms and worst error."""

    record: BlockRecord
    arm: str
    quantity: str
    errors: QuantityErrors
    bound: tuple[float, float]

    @property
    def ok(self) -> bool:
        return within_bounds(self.errors, self.bound)


def _worst_errors(records: list[BlockRecord]) -> list[WorstErrors]:
    """Return the worst errors of each quantity over the processes of a cell, beside the cell's bounds."""
    cells: dict[tuple[Any, ...], dict[str, list[tuple[BlockRecord, QuantityErrors]]]] = {}
    for record in records:
        place = (*block_key(record), record.steps)
        for name, arm in record.arms.items():
            if parse_arm_name(name)["projection"] != TWIN:
                processes = cells.setdefault((*place, name), {})
                for quantity, errors in arm.quantities.items():
                    processes.setdefault(quantity, []).append((record, errors))
    worst = []
    for (*_, name), quantities in cells.items():
        for quantity, processes_errors in quantities.items():
            record = processes_errors[0][0]
            merged = _merge_errors([errors for _, errors in processes_errors])
            worst.append(WorstErrors(record, name, quantity, merged, record.bounds[form_of(name)][quantity]))
    return worst


def _merge_errors(errors: list[QuantityErrors]) -> QuantityErrors:
    """Return the worst of the errors that the processes have."""
    rms, worst, bitwise, ulp = zip(*errors, strict=True)
    is_same = None if None in bitwise else all(bitwise)
    return QuantityErrors(max(rms), max(worst), is_same, None if None in ulp else max(ulp))
