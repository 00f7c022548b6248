"""Which fp64 gate each cell had: at full size, at a few steps, or none.

A cell in fp64 at full size is its own fp64 check. For other cells, a run verifies in fp64 at a few steps of one
workload, and `verify --out` beside the run's records verifies at full size. Pure functions.
"""

from typing import Any

from harness.records.store import Record, latest_records

FULL, NONE = "full size", "none"
Program = tuple[str, ...]  # framework, device, execution, cell, pass and arm: the same function at every size


class Gates:
    """Gates that the output checks in fp64 give to cells.

    `whole`: programs that were checked at full size, each with its workload's name.
    """

    def __init__(self, checks: list[Record]) -> None:
        self.whole: set[tuple[str, ...]] = set()
        self.steps: dict[Program, tuple[int, str]] = {}  # a program's largest number of steps, and in which workload
        for check in checks:
            for arm in (name for name, arm in check["arms"].items() if arm["status"] in ("ok", "wrong")):
                key, workload = program(check, arm), check["workload"]["name"]
                self.steps[key] = max(self.steps.get(key, (0, "")), (check["steps"], workload))
                if is_full_size(check):
                    self.whole.add((*key, workload))

    def of(self, record: Record, arm: str) -> str:
        """Return how a block's arm was verified in fp64, as a word of the tables."""
        key = program(record, arm)
        if (record["precision"] == "fp64" and is_full_size(record)) or (*key, record["workload"]["name"]) in self.whole:
            return FULL
        return "{} steps of {}".format(*self.steps[key]) if key in self.steps else NONE


def program(record: Record, arm: str) -> Program:
    """Return the program of a block's arm, whose function one check in fp64 verifies for every size."""
    return record["framework"], record["device"], record["execution"], record["workload"]["cell"], record["pass"], arm


def is_full_size(record: Record) -> bool:
    """Return whether a block ran all the steps of its workload."""
    return bool(record["steps"] == record["workload"]["T"])


def fp64_checks(header: Record, verification: list[Record]) -> tuple[list[Record], str]:
    """Return the fp64 checks of a verification beside a run's records, and why they do not count, if they do not."""
    if not verification:
        return [], ""
    if names := header_differences(header, verification[0]):
        return [], f"it is not of the same {' and '.join(names)}"
    return [record for record in latest_records(verification, ("check",)) if record["precision"] == "fp64"], ""


def header_differences(header: Record, other: Record) -> list[str]:
    """Return the names of what two run headers differ in: code, machine, versions, weights.

    Versions and weights are compared only where both headers have them.
    """
    basis, other_basis = header["basis"], other["basis"]
    differences = {
        "code": basis["code"]["hash"] != other_basis["code"]["hash"],
        "machine": basis["machine"] != other_basis["machine"],
        "versions": _differ(basis["versions"], other_basis["versions"]),
        "weights": _differ(header["weights"], other["weights"]),
    }
    return [name for name, differs in differences.items() if differs]


def _differ(values: dict[str, Any], others: dict[str, Any]) -> bool:
    """Return whether two dicts differ in the value of a key that both have."""
    return any(values[name] != others[name] for name in values.keys() & others.keys())
