"""Peak memory of every arm, and the front of time against memory. Pure: the same records give the same tables.

A form is on the front where no other form of its place, after the same recurrence, is both as fast and as small, and
one of the two more so. Times are ratios to batched, which has 1; memory is the most that a call took at once.

The kernel counts pages in batches and for the whole process, so of what is not much larger than a megabyte it says
nothing.
"""

from collections.abc import Iterable

import pandas as pd

from harness.analysis.gaps import ARM, block_key, is_included, parse_arm_name
from harness.records.schema import BlockRecord
from harness.study.configuration import CONFIG
from harness.study.parts import BATCHED, TWIN

GROUP = [*CONFIG, "workload", "pass", "recurrence"]
PEAKS = [*CONFIG, "workload", "pass", *ARM, "peak_bytes", "kernel_bytes", "framework_bytes", "missing"]
RESOLVED = 4e6  # bytes of batched from which on shares of it mean something
FRONT = [*GROUP, "projection", "ratio", "ci_low", "ci_high", "peak_bytes", "share", "on_front"]


def peaks(records: Iterable[BlockRecord]) -> pd.DataFrame:
    """Return a row for each arm whose memory was measured, in bytes; `peak_bytes` is the number that holds."""
    rows = []
    for record in records:
        for name, arm in record.arms.items():
            if arm.peak is not None and arm.status == "ok":
                numbers = (arm.peak.shown_bytes, arm.peak.kernel_bytes, arm.peak.framework_bytes, arm.peak.missing)
                rows.append((*block_key(record), *parse_arm_name(name).values(), *numbers))
    frame = pd.DataFrame(rows, columns=PEAKS)
    counts = ["peak_bytes", "kernel_bytes", "framework_bytes"]
    frame[counts] = frame[counts].astype("Int64")
    return frame.sort_values([*GROUP, "projection"], kind="stable", ignore_index=True)


def fronts(peak_rows: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each form with a time and a peak: its ratio to batched, and its memory as a share of batched's.

    A place has no rows where batched's memory is not known or below RESOLVED, nor a gap whose A/A control missed 1.
    """
    if peak_rows.empty:
        return pd.DataFrame(columns=FRONT)
    times = gaps[is_included(gaps) & (gaps.contender != TWIN)].rename(columns={"contender": "projection"})
    baseline = times[GROUP].drop_duplicates().assign(projection=BATCHED, ratio=1.0, ci_low=1.0, ci_high=1.0)
    columns = [*GROUP, "projection", "ratio", "ci_low", "ci_high"]
    frame = pd.concat([times[columns], baseline[columns]]).merge(
        peak_rows[[*GROUP, "projection", "peak_bytes"]], on=[*GROUP, "projection"]
    )
    frame = frame[frame.peak_bytes.notna()]
    is_known = (frame.projection == BATCHED) & (frame.peak_bytes >= RESOLVED)
    of_batched = frame[is_known].set_index(GROUP).peak_bytes.rename("batched_bytes")
    frame = frame.join(of_batched, on=GROUP, how="inner").reset_index(drop=True)
    frame["share"] = frame.peak_bytes.astype(float) / frame.batched_bytes.astype(float)
    frame["on_front"] = False
    for _, rows in frame.groupby(GROUP, sort=False):
        frame.loc[rows.index, "on_front"] = [
            _is_on_front(ratio, peak_bytes, rows) for ratio, peak_bytes in zip(rows.ratio, rows.peak_bytes, strict=True)
        ]
    order = [*GROUP, "peak_bytes", "ratio", "projection"]
    return frame[FRONT].sort_values(order, ascending=[*[True] * len(GROUP), False, True, True], ignore_index=True)


def _is_on_front(ratio: float, peak_bytes: int, rows: pd.DataFrame) -> bool:
    """Return whether no row is both as fast and as small, and one of the two more so."""
    as_good = (rows.ratio <= ratio) & (rows.peak_bytes <= peak_bytes)
    return not (as_good & ((rows.ratio < ratio) | (rows.peak_bytes < peak_bytes))).any()
