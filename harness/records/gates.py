"""Which gates a cell had: its own precision's at full size, and that of fp64 at full size, at few steps, or not at all.

A run verifies in fp64 at few steps of one workload; `verify --out` beside its records does at full size. Pure.
"""

from typing import Any

from harness.records.store import Record, latest

FULL, NONE = "full size", "none"
Program = tuple[str, ...]  # framework, device, execution, cell, pass and arm: the same function at every size


class Gates:
    """What verifications in fp64 speak for. `whole`: programs, each with the workload that it had at full size."""

    def __init__(self, checks: list[Record]) -> None:
        self.whole: set[tuple[str, ...]] = set()
        self.steps: dict[Program, tuple[int, str]] = {}  # the most steps of a program, and of which workload
        for check in checks:
            for arm in (name for name, arm in check["arms"].items() if arm["status"] in ("ok", "wrong")):
                key, name = program(check, arm), check["workload"]["name"]
                self.steps[key] = max(self.steps.get(key, (0, "")), (check["steps"], name))
                if is_whole(check):
                    self.whole.add((*key, name))

    def of(self, record: Record, arm: str) -> str:
        """How a block's arm was verified in fp64, as a word of the tables."""
        key = program(record, arm)
        if (record["precision"] == "fp64" and is_whole(record)) or (*key, record["workload"]["name"]) in self.whole:
            return FULL
        return "{} steps of {}".format(*self.steps[key]) if key in self.steps else NONE


def program(record: Record, arm: str) -> Program:
    """What a verification in fp64 speaks for."""
    return record["framework"], record["device"], record["execution"], record["workload"]["cell"], record["pass"], arm


def is_whole(record: Record) -> bool:
    """Whether a block ran all the steps of its workload."""
    return bool(record["steps"] == record["workload"]["T"])


def beside(heading: Record, verification: list[Record]) -> tuple[list[Record], str]:
    """What a verification beside a run's records verified in fp64, and why that is not counted, if it is not."""
    if not verification:
        return [], ""
    if names := unlike(heading, verification[0]):
        return [], f"it is not of the same {' and '.join(names)}"
    return [record for record in latest(verification, ("check",)) if record["precision"] == "fp64"], ""


def unlike(heading: Record, other: Record) -> list[str]:
    """In what the measurements of two first records are not of the same: code, machine, and of what both have versions
    and weights.
    """
    basis, its = heading["basis"], other["basis"]
    differ = {
        "code": basis["code"]["hash"] != its["code"]["hash"],
        "machine": basis["machine"] != its["machine"],
        "versions": _differ(basis["versions"], its["versions"]),
        "weights": _differ(heading["weights"], other["weights"]),
    }
    return [name for name, differs in differ.items() if differs]


def _differ(values: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether two differ in what both have."""
    return any(values[name] != others[name] for name in values.keys() & others.keys())
