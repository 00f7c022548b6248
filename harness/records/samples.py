"""Times per call of a recorded arm."""

import statistics

import numpy as np

from harness.records.schema import ArmTiming


def call_times_ns(arm: ArmTiming) -> np.ndarray:
    """Return the nanoseconds per call of every sample of a recorded arm."""
    return np.array(arm.samples_ns, float) / arm.calls


def median_call_s(arm: ArmTiming) -> float:
    """Return the median seconds per call of a recorded arm."""
    return statistics.median(arm.samples_ns) / arm.calls / 1e9
