"""Which gates a cell had: its own precision's at full size, and that of fp64 at full size, at few steps, or not at all.

A run verifies in fp64 at few steps of one workload; `verify --out` beside its records does at full size. Pure.
"""

from typing import Any

from harness.records import Record, latest

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
    if why := _of_another(heading, verification[0]):
        return [], why
    return [record for record in latest(verification, ("check",)) if record["precision"] == "fp64"], ""


def _of_another(heading: Record, verification: Record) -> str:
    """In what a verification is not of what a run measured; nothing where it is."""
    mine, its = heading["basis"], verification["basis"]
    if mine["code"]["hash"] != its["code"]["hash"]:
        return "it is of other code"
    if mine["machine"] != its["machine"]:
        return "it is of another machine"
    if _differ(mine["versions"], its["versions"]):
        return "it is of other versions"
    return "it is of other weights or inputs" if _differ(heading["weights"], verification["weights"]) else ""


def _differ(mine: dict[str, Any], its: dict[str, Any]) -> bool:
    """Whether two differ in what both have."""
    return any(mine[name] != its[name] for name in mine.keys() & its.keys())
