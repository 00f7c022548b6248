"""Which fp64 gate each cell had: at full size, at a few steps, or none.

A cell in fp64 at full size is its own fp64 check. For other cells, a run verifies in fp64 at a few steps of one
workload, and `verify --out` beside the run's records verifies at full size. Pure functions.
"""

from collections.abc import Sequence
from typing import Any

from harness.records.schema import BlockRecord, HeaderRecord, RunRecord
from harness.records.store import header_of, latest_blocks
from harness.study.configuration import Configuration

FULL, NONE = "full size", "none"
Program = tuple[str, ...]  # framework, device, execution, cell, pass and arm: the same function at every size


class Gates:
    """Gates that the output checks in fp64 give to cells.

    `whole`: programs that were checked at full size, each with its workload's name.
    """

    def __init__(self, checks: Sequence[BlockRecord]) -> None:
        self.whole: set[tuple[str, ...]] = set()
        self.steps: dict[Program, tuple[int, str]] = {}  # a program's largest number of steps, and in which workload
        for check in checks:
            for arm in (name for name, arm in check.arms.items() if arm.status in ("ok", "wrong")):
                key, workload = program_of(check, arm), check.workload.name
                self.steps[key] = max(self.steps.get(key, (0, "")), (check.steps, workload))
                if is_full_size(check):
                    self.whole.add((*key, workload))

    def of(self, record: BlockRecord, arm: str) -> str:
        """Return how a block's arm was verified in fp64, as a word of the tables."""
        key = program_of(record, arm)
        is_its_own = record.configuration.precision == "fp64" and is_full_size(record)
        if is_its_own or (*key, record.workload.name) in self.whole:
            return FULL
        return "{} steps of {}".format(*self.steps[key]) if key in self.steps else NONE


def program(configuration: Configuration, cell: str, pass_: str, arm: str) -> Program:
    """Return a program, whose function one check in fp64 verifies for every size, thread count and precision."""
    return configuration.framework, configuration.device, configuration.execution, cell, pass_, arm


def program_of(record: BlockRecord, arm: str) -> Program:
    """Return the program of a block's arm."""
    return program(record.configuration, record.workload.cell, record.pass_, arm)


def is_full_size(record: BlockRecord) -> bool:
    """Return whether a block ran all the steps of its workload."""
    return record.steps == record.workload.T


def fp64_checks(header: HeaderRecord, verification: Sequence[RunRecord]) -> tuple[list[BlockRecord], str]:
    """Return the fp64 checks of a verification beside a run's records, and why they do not count, if they do not."""
    if not verification:
        return [], ""
    if names := header_differences(header, header_of(verification)):
        return [], f"it is not of the same {' and '.join(names)}"
    checks = latest_blocks(verification, "check")
    return [record for record in checks if record.configuration.precision == "fp64"], ""


def header_differences(header: HeaderRecord, other: HeaderRecord) -> list[str]:
    """Return the names of what two run headers differ in: code, machine, versions, weights.

    Versions and weights are compared only where both headers have them.
    """
    differences = {
        "code": header.basis.code.hash != other.basis.code.hash,
        "machine": header.basis.machine != other.basis.machine,
        "versions": _differ(header.basis.versions, other.basis.versions),
        "weights": _differ(header.weights, other.weights),
    }
    return [name for name, differs in differences.items() if differs]


def _differ(values: dict[str, Any], others: dict[str, Any]) -> bool:
    """Return whether two dicts differ in the value of a key that both have."""
    return any(values[name] != others[name] for name in values.keys() & others.keys())
