"""Which arms are timed side by side: what runs beside an arm shares its heap and its caches, and may disturb it.

A workload and pass is measured in parts, each a block of its own: the arms of the question, one part for each of our
loops; whatever else projects after such a loop; the framework's own layer; and what is given its states. An arm is at
home in one part. Where another part compares with it, it is measured there once more, as a guest, for that comparison
alone.
"""

from collections.abc import Iterable
from typing import Any

from harness.study.study import AROUND_THE_LOOP
from impls.interface import Arm

LOOPS = ("unrolled", "scan")  # recurrences whose loop is ours, so that something can be projected inside it
BATCHED = "batched"
TWIN = "twin"  # the batched arm a second time: the A/A control
OWN = "layer_batched"  # the framework's own layer, projected once
QUESTION = (*AROUND_THE_LOOP, TWIN)
PAIR = ("in_loop", BATCHED)  # without which a block answers nothing


def part_of(recurrence: str, projection: str) -> str:
    """The part that an arm is at home in."""
    return recurrence if recurrence not in LOOPS or projection in QUESTION else f"{recurrence}-others"


def is_question(part: str) -> bool:
    """Whether a part holds the arms of the question."""
    return part in LOOPS


def parts(arms: Iterable[Arm]) -> dict[str, tuple[Arm, ...]]:
    """Each part's arms, guests last: the parts of the question first, the arms in the order given."""
    ordered = list(arms)
    by_part: dict[str, list[Arm]] = {}
    for arm in ordered:
        by_part.setdefault(part_of(arm.recurrence, arm.projection), []).append(arm)
    for part, members in by_part.items():
        members += [arm for arm in ordered if arm not in members and _visits(arm, part, members)]
    return {part: tuple(by_part[part]) for part in sorted(by_part, key=lambda part: not is_question(part))}


def _visits(arm: Arm, part: str, members: list[Arm]) -> bool:
    """Whether a part compares its members with an arm of another: with the loop's batched; with in_loop, a layer."""
    if part.endswith("-others"):
        return arm.projection == BATCHED and part.startswith(arm.recurrence)
    return arm.projection == "in_loop" and any(member.name == OWN for member in members)


def at_home(record: dict[str, Any]) -> dict[str, Any]:
    """A block's record without its guests; older records have none."""
    part = record.get("part")
    if not part:
        return record
    residents = {name: arm for name, arm in record["arms"].items() if part_of(*name.split("_", 1)) == part}
    return record | {"arms": residents}
