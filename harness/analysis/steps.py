"""Where a gap comes from: the steps from projecting inside the loop to one product, which multiply to the gap.

From in_loop to per_step the products leave the loop; from there to bmm they become one batched call; from there to
batched, one product. A form that was not measured is passed over, so that a step may join two of these.

In a process, a form's level is the median over rounds of its log ratio to batched. A step is the difference of two
levels, so that the steps of a process add up to its gap's log ratio. Intervals are Student's t over processes. Pure:
the same records give the same steps.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.analysis.gaps import block_key
from harness.records.samples import call_times_ns
from harness.records.schema import BlockRecord
from harness.study.configuration import CONFIG
from harness.study.parts import BATCHED
from harness.study.study import LOOPS, Study

FORMS = ("in_loop", "per_step", "bmm", BATCHED)
PLACE = [*CONFIG, "workload", "pass", "recurrence"]
STEPS = [*PLACE, "form", "next_form", "ratio", "ci_low", "ci_high", "processes"]
LogRatios = dict[str, np.ndarray]  # form -> log ratio to batched in each round of one process


def steps(blocks: list[BlockRecord], study: Study) -> pd.DataFrame:
    """Return a row for each step of each gap of in_loop: `ratio` is the time of `form` over that of `next_form`.

    Without the points of a sweep, which have no forms between.
    """
    processes_by_place: dict[tuple[Any, ...], list[LogRatios]] = {}
    nodes: dict[tuple[Any, ...], list[str]] = {}
    swept = {point.name for point in study.swept}
    for block in blocks:
        if block.workload.name in swept:
            continue
        for recurrence in LOOPS:
            if log_ratios := _log_ratios(block, recurrence):
                processes_by_place.setdefault((*block_key(block), recurrence), []).append(log_ratios)
                nodes.setdefault((*block_key(block), recurrence), []).append(block.node)
    rows = []
    for place, processes in processes_by_place.items():
        measured = [form for form in FORMS if all(form in log_ratios for log_ratios in processes)]
        levels = {form: stats.row_medians([log_ratios[form] for log_ratios in processes]) for form in measured}
        for form, next_form in pairwise(measured):
            level_steps = np.subtract(levels[form], levels[next_form]).tolist()
            sample = stats.Sample(tuple(stats.node_means(level_steps, nodes[place])), 0.0)
            gap = stats.estimate_gap(sample, study.margin)
            rows.append((*place, form, next_form, gap.ratio, gap.low, gap.high, gap.processes))
    frame = pd.DataFrame(rows, columns=STEPS)
    return frame.sort_values(PLACE, kind="stable", ignore_index=True)


def _log_ratios(block: BlockRecord, recurrence: str) -> LogRatios:
    """Return the log ratios of each form of a recurrence that has times; none where in_loop or batched has none."""
    names = {form: f"{recurrence}_{form}" for form in FORMS}
    measured = {form: name for form, name in names.items() if (arm := block.arms.get(name)) and arm.has_times}
    if not {"in_loop", BATCHED} <= measured.keys():
        return {}
    times = call_times_ns(block, list(measured.values()))
    return {form: np.log(times[name] / times[names[BATCHED]]) for form, name in measured.items()}
