"""What compiling does to the gap: in the loop that users write, its change from a framework's eager execution.

A change is the ratio of two gaps, a compiled execution's over the eager one's. Their processes are independent, so its
interval and p-value are Welch's (harness.analysis.stats). Its effect is named only where the p-value, Holm-corrected
over the changes of one framework, execution, device and precision, is at most 5%. An interval that holds 1 does not
show that there is no gap: an effect is called removing only where the interval lies within the margin. Pure: the same
gaps give the same changes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.analysis.gaps import is_included
from harness.analysis.stats import LEVEL

FROM = "eager"  # the execution that the others are compared with
UNROLLED = (FROM, "inductor", "inductor-batched", "cudagraph")  # executions whose users write a Python loop
PLACE = ["framework", "device", "threads", "precision", "workload", "pass"]
USUAL, SAME = "usual", "same"  # which loop a change is measured in
CHANGES = [*PLACE, "execution", "loop", "gap", "eager_gap", "change", "ci_low", "ci_high", "p", "effect"]
REMOVES, REVERSES, NARROWS, WIDENS, OPENS = "removes", "reverses", "narrows", "widens", "opens"
BLURS = "blurs"  # moves the gap to where neither a side of 1 nor its absence is shown
NOT_SHOWN = "not shown"
Loops = Mapping[tuple[str, str], str]  # framework, execution -> the recurrence that its users write


def users_loop(framework: str, execution: str, loops: Loops) -> str:
    """Return the recurrence that an execution's users write; older records do not state it."""
    return loops.get((framework, execution), "unrolled" if execution in UNROLLED else "scan")


def users_rows(frame: pd.DataFrame, loops: Loops) -> pd.DataFrame:
    """Return the rows whose recurrence is the one that users of their execution write."""
    written = [
        recurrence == users_loop(framework, execution, loops)
        for framework, execution, recurrence in zip(frame.framework, frame.execution, frame.recurrence, strict=True)
    ]
    return frame[pd.Series(written, index=frame.index, dtype=bool)]


def users_gaps(gaps: pd.DataFrame, loops: Loops) -> pd.DataFrame:
    """Return the included gaps of in_loop that have an interval, in the loop that each execution's users write."""
    return users_rows(_known_gaps(gaps), loops)


def _known_gaps(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the included gaps of in_loop that have an interval."""
    return gaps[(gaps.contender == "in_loop") & is_included(gaps) & gaps.ci_low.notna()]


def changes(gaps: pd.DataFrame, loops: Loops, margin: float) -> pd.DataFrame:
    """Return a row for each gap of another execution than FROM whose framework's eager gap was measured too.

    With `loop` USUAL, both are in the loop that users of the execution write: where these differ, the loop changes with
    the execution. With `loop` SAME, the other execution has the eager gap's loop; where users write that anyway, there
    is no such row. `change` is gap over eager_gap, with its 95% interval, which is not corrected. `p` is that of no
    change, and corrected. `margin`: the share of 1 within which a gap counts as none.
    """
    known = _known_gaps(gaps)
    usual = users_rows(known, loops)
    eager = usual[usual.execution == FROM]
    unusual = known.drop(usual.index)
    pairs = pd.concat([
        frame[frame.execution != FROM].assign(loop=loop).merge(eager, on=on, suffixes=("", "_eager"))
        for loop, frame, on in ((USUAL, usual, PLACE), (SAME, unusual, [*PLACE, "recurrence"]))
    ])  # fmt: skip
    if pairs.empty:
        return pd.DataFrame(columns=CHANGES)
    halves = [np.log(pairs[f"ci_high{run}"] / pairs[f"ci_low{run}"]) / 2 for run in ("", "_eager")]
    log_change = np.log(pairs.ratio / pairs.ratio_eager)
    half, p = stats.welch_interval(log_change, halves, (pairs.processes, pairs.processes_eager))
    pairs = pairs.assign(
        gap=pairs.ratio,
        eager_gap=pairs.ratio_eager,
        change=np.exp(log_change),
        change_low=np.exp(log_change - half),
        change_high=np.exp(log_change + half),
        p=p,
    )
    pairs = pairs.reset_index(drop=True)
    for _, family in pairs.groupby(["framework", "execution", "device", "precision", "loop"], sort=False):
        pairs.loc[family.index, "p"] = stats.holm_adjust(list(family.p))
    pairs["effect"] = [_effect(row, margin) for row in pairs.to_dict("records")]
    pairs = pairs.drop(columns=["ci_low", "ci_high"]).rename(columns={"change_low": "ci_low", "change_high": "ci_high"})
    return pairs[CHANGES].sort_values(["loop", *PLACE, "execution"], ascending=[False, *[True] * 7], ignore_index=True)


def _effect(row: Mapping[Any, Any], margin: float) -> str:
    """Return what a change does to the gap: the eager gap's direction, the change's, and the other gap's decide."""
    if row["p"] > LEVEL:
        return NOT_SHOWN
    direction = _direction(row["ci_low"], row["ci_high"])
    eager_direction = _direction(row["ci_low_eager"], row["ci_high_eager"])
    if eager_direction == 0:
        return OPENS if direction else BLURS
    if (row["change"] > 1) == (eager_direction > 0):
        return WIDENS
    if direction == 0:
        return REMOVES if 1 / (1 + margin) <= row["ci_low"] and row["ci_high"] <= 1 + margin else BLURS
    return NARROWS if direction == eager_direction else REVERSES


def _direction(low: float, high: float) -> int:
    """Return the side of 1 that an interval lies on: 1 above, -1 below, 0 where it holds 1."""
    return 1 if low > 1 else -1 if high < 1 else 0
