"""The parts of a workload's arms: which arms are timed side by side.

Arms that run side by side share a heap and caches, and may disturb each other. A workload and pass is therefore
measured in parts, each in a block of its own:

- the arms of the question, one part for each of our loops;
- the other projections after such a loop;
- the framework's own layer;
- the arms with precomputed hidden states.

Every arm belongs to one part, its home. Where another part compares its arms with it, it is measured there as well,
as a guest, for that comparison alone.
"""

import math
from collections.abc import Iterable
from functools import cache

from harness.study.study import AROUND_THE_LOOP, LOOPS
from impls.interface import WHOLE, Arm, chunk_count

PRECOMPUTED = "given"  # the recurrence of precomputed hidden states: the projection is alone
BATCHED = "batched"
TWIN = "twin"  # the batched arm a second time: the A/A control
OWN = "layer_batched"  # the framework's own layer, projected once
QUESTION = (*AROUND_THE_LOOP, "hoisted", TWIN)  # with what a transformation makes of in_loop
PAIR = ("in_loop", BATCHED)  # a block without both answers nothing


def chunk_order(projection: str) -> float:
    """Return by what projections that cut time are ordered: their number of chunks, infinite for one for each step."""
    count = chunk_count(projection)
    return math.inf if count == WHOLE else int(count)


@cache
def part_of(recurrence: str, projection: str) -> str:
    """Return the part that an arm belongs to."""
    return recurrence if recurrence not in LOOPS or projection in QUESTION else f"{recurrence}-others"


def is_question(part: str) -> bool:
    """Return whether a part holds the arms of the question."""
    return part in LOOPS


def arms_by_part(arms: Iterable[Arm]) -> dict[str, tuple[Arm, ...]]:
    """Return each part's arms, with guests last.

    The parts of the question come first. Within a part, arms keep the given order.
    """
    ordered = list(arms)
    by_part: dict[str, list[Arm]] = {}
    for arm in ordered:
        by_part.setdefault(part_of(arm.recurrence, arm.projection), []).append(arm)
    for part, members in by_part.items():
        members += [arm for arm in ordered if arm not in members and _is_guest(arm, part, members)]
    return {part: tuple(by_part[part]) for part in sorted(by_part, key=lambda part: not is_question(part))}


def _is_guest(arm: Arm, part: str, members: list[Arm]) -> bool:
    """Return whether a part compares its members with an arm of another part.

    The other projections after a loop are compared with that loop's batched arm, and the framework's own layer with
    the in_loop arms.
    """
    if part.endswith("-others"):
        return arm.projection == BATCHED and part.startswith(arm.recurrence)
    return arm.projection == "in_loop" and any(member.name == OWN for member in members)
