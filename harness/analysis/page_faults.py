"""Page faults: the share of each arm's time in which the kernel gives memory, and whether it decides a gap.

Pure: the same records give the same tables.
"""

import statistics

import numpy as np
import pandas as pd

from harness.analysis.gaps import ARM, block_key, parse_arm_name
from harness.records.samples import median_call_s
from harness.records.schema import BlockRecord
from harness.study.configuration import CONFIG

FAULTS = [*CONFIG, "workload", "pass", *ARM, "process", "faults", "share"]
PLACE = [*CONFIG, "workload", "pass", *ARM]


def faults(blocks: list[BlockRecord]) -> pd.DataFrame:
    """Return a row for each arm and process whose page faults were counted.

    `faults` is the minor faults of a call, the median over samples. `share` is the part of the median call's time that
    they take, at the measured cost of a fault of the smallest pages. It is missing where that cost was not measured.
    """
    costs_ns = [b.rates.fault_ns for b in blocks if b.rates is not None and b.rates.fault_ns is not None]
    fault_s = statistics.median(costs_ns) / 1e9 if costs_ns else np.nan
    rows = []
    for block in blocks:
        place = block_key(block)
        for name, arm in block.arms.items():
            if arm.faults and arm.status == "ok":
                # Most arms have no faults, and need no median.
                count = statistics.median(arm.faults) / arm.calls if any(arm.faults) else 0.0
                share = min(count * fault_s / median_call_s(arm), 1.0) if count else 0 * fault_s
                rows.append((*place, *parse_arm_name(name).values(), block.replicate, count, share))
    return pd.DataFrame(rows, columns=FAULTS).sort_values([*PLACE, "process"], kind="stable", ignore_index=True)


def arms_with_uneven_faults(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Return the arms whose share of time in page faults differs by more than `margin` between processes.

    A row has the least and the greatest share. In such an arm the allocator, and not only the program, is part of
    what is measured.
    """
    shares = table.groupby(PLACE, sort=False).share.agg(["min", "max", "size"]).reset_index()
    return shares[shares["max"] - shares["min"] > margin].reset_index(drop=True)
