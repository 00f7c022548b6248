"""Which arms are timed side by side: what runs beside an arm shares its heap and its caches, and may disturb it.

A workload and pass is measured in parts, each a block of its own: the arms of the question, one part for each of our
loops; whatever else projects after such a loop; the framework's own layer; and what is given its states. An arm is at
home in one part. Where another part compares with it, it is measured there once more, as a guest, for that comparison
alone.
"""

from collections.abc import Iterable
from typing import Any

from harness.study import AROUND_THE_LOOP
from impls.interface import Arm

LOOPS = ("unrolled", "scan")  # recurrences whose loop is ours, so that something can be projected inside it
BATCHED = "batched"
TWIN = "twin"  # the batched arm a second time: the A/A control
OWN = "layer_batched"  # the framework's own layer, projected once
QUESTION = (*AROUND_THE_LOOP, TWIN)


def part_of(recurrence: str, projection: str) -> str:
    """The part that an arm is at home in."""
    return recurrence if recurrence not in LOOPS or projection in QUESTION else f"{recurrence}-others"


def is_question(part: str) -> bool:
    """Whether a part holds the arms of the question."""
    return part in LOOPS


def parts(arms: Iterable[Arm]) -> dict[str, tuple[Arm, ...]]:
    """Each part's arms, guests last: the parts of the question first, the arms in the order given."""
    given = list(arms)
    made: dict[str, list[Arm]] = {}
    for arm in given:
        made.setdefault(part_of(arm.recurrence, arm.projection), []).append(arm)
    for part, mine in made.items():
        mine += [arm for arm in given if arm not in mine and _visits(arm, part, mine)]
    return {part: tuple(made[part]) for part in sorted(made, key=lambda part: not is_question(part))}


def _visits(arm: Arm, part: str, there: list[Arm]) -> bool:
    """Whether a part compares what is there with an arm of another: with the loop's batched; with in_loop, a layer."""
    if part.endswith("-others"):
        return arm.projection == BATCHED and part.startswith(arm.recurrence)
    return arm.projection == "in_loop" and any(one.name == OWN for one in there)


def at_home(record: dict[str, Any]) -> dict[str, Any]:
    """A block's record without its guests; older records have none."""
    part = record.get("part")
    if not part:
        return record
    own = {name: arm for name, arm in record["arms"].items() if part_of(*name.split("_", 1)) == part}
    return record | {"arms": own}
