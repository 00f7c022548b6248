"""Times per call of a recorded arm."""

import statistics
from collections.abc import Sequence

import numpy as np

from harness.records.schema import ArmTiming, BlockRecord


def call_times_ns(record: BlockRecord, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the nanoseconds per call of every sample of the named arms, all of which have times."""
    arms = [record.arms[name] for name in names]
    samples_ns = np.array([arm.samples_ns for arm in arms], float)  # the arms of a block have as many samples
    return dict(zip(names, samples_ns / np.array([[arm.calls] for arm in arms]), strict=True))


def median_call_s(arm: ArmTiming) -> float:
    """Return the median seconds per call of a recorded arm."""
    return statistics.median(arm.samples_ns) / arm.calls / 1e9
