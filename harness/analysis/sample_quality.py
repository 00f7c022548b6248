"""Flags that say whether an arm's samples are what the statistics assume.

They are for the report; nothing is left out because of them.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.gaps import ENGINE
from harness.analysis.stats import median_variance
from harness.records.schema import ArmTiming, BlockRecord

FEWEST = 20  # samples that anything but outliers can be recognised from
OUTLIER = 5.0  # robust standard centred above the median
APART = 5.0  # Ashman's D of two modes; 2 is where a mixture first shows two peaks (Ashman, Bird and Zepf 1994)
SHARE = 0.15  # of the samples, in either mode, at least
ERRORS = 3.0  # standard errors by which the halves' medians must differ
AT_ONCE = 4096  # arms; bounds the memory used
KEYS = [*ENGINE, "pass"]
FLAGS = ["samples", "median_ns", "above", "outliers", "drift", "drifts", "autocorrelation", "bimodal"]


def quality_flags(arms_ns: list[list[int]], margin: float) -> pd.DataFrame:
    """Return a row of FLAGS for each arm, from its samples in nanoseconds, in the order they were taken.

    `median_ns` is the median sample, or the geometric mean of the middle two where their number is even. `above` is the
    part by which it lies above the shortest sample, which grows with whatever else a machine does. `drift` is the log
    ratio of the medians, second half to first; it `drifts` beyond `margin` (a fraction). `autocorrelation` is that of
    successive rounds. From `drift` on, flags are missing where the samples are too few to tell.
    """
    counts: dict[int, list[int]] = {}
    for index, samples_ns in enumerate(arms_ns):
        counts.setdefault(len(samples_ns), []).append(index)
    frames = [pd.DataFrame(columns=FLAGS)] if not arms_ns else []
    for indices in counts.values():  # arms with equally many samples are computed together
        for start in range(0, len(indices), AT_ONCE):
            chunk = indices[start : start + AT_ONCE]
            logs = np.log(np.array([arms_ns[index] for index in chunk], float))
            frames.append(pd.DataFrame(_flags(logs, margin), index=chunk, columns=FLAGS))
    return pd.concat(frames).sort_index()


def _flags(logs: np.ndarray, margin: float) -> dict[str, Any]:
    """Return the flags of each row of `logs` [arms, samples]."""
    arms, count = logs.shape
    middle = np.median(logs, axis=1, keepdims=True)
    limit = middle + OUTLIER * 1.4826 * np.median(np.abs(logs - middle), axis=1, keepdims=True)
    is_outlier = (logs > limit) & (limit > middle)  # samples that are mostly alike have no outliers
    outliers = is_outlier.sum(axis=1)
    above = np.expm1(middle[:, 0] - logs.min(axis=1))
    flags = {"samples": count, "median_ns": np.exp(middle[:, 0]), "above": above, "outliers": outliers}
    if count < FEWEST:
        unknown = pd.array([None] * arms, "boolean")
        return flags | {"drift": math.nan, "drifts": unknown, "autocorrelation": math.nan, "bimodal": unknown}
    first, second = logs[:, : count // 2], logs[:, count // 2 :]
    drift = np.median(second, axis=1) - np.median(first, axis=1)
    error = np.sqrt(median_variance(first) + median_variance(second))
    clipped = np.where(limit > middle, np.minimum(logs, limit), logs)  # so that one spike makes no correlation
    return flags | {
        "drift": drift,
        "drifts": pd.array(np.abs(drift) > np.maximum(math.log1p(margin), ERRORS * error), "boolean"),
        "autocorrelation": _autocorrelation(clipped),
        "bimodal": pd.array(_is_bimodal(logs - middle, count - outliers), "boolean"),
    }


def _autocorrelation(values: np.ndarray) -> np.ndarray:
    """Return the lag-1 autocorrelation of each row; 0 for values that are all alike."""
    centred = values - values.mean(axis=1, keepdims=True)
    total = (centred**2).sum(axis=1)
    return np.divide((centred[:, 1:] * centred[:, :-1]).sum(axis=1), total, out=np.zeros(len(total)), where=total > 0)


def _is_bimodal(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return whether some split of each row's `counts` lowest values leaves two modes that lie clearly apart.

    Computes Ashman's D of every split at once, from running sums of the ordered values and their squares.
    """
    ordered = np.sort(values, axis=1)[:, : int(counts.max())]
    sums, squares = np.cumsum(ordered, axis=1), np.cumsum(ordered**2, axis=1)
    last = (counts - 1)[:, None]
    low_sizes = np.arange(1, ordered.shape[1])[None]  # values below the split
    high_sizes = np.maximum(counts[:, None] - low_sizes, 1)
    minimum = np.maximum(3, np.ceil(SHARE * counts))[:, None]
    means = sums[:, :-1] / low_sizes, (np.take_along_axis(sums, last, 1) - sums[:, :-1]) / high_sizes
    powers = squares[:, :-1], np.take_along_axis(squares, last, 1) - squares[:, :-1]
    spread = sum(
        np.maximum(power - size * mean**2, 0) / np.maximum(size - 1, 1)
        for power, size, mean in zip(powers, (low_sizes, high_sizes), means, strict=True)
    )
    is_apart = math.sqrt(2) * (means[1] - means[0]) > APART * np.sqrt(spread)
    return np.asarray((is_apart & (low_sizes >= minimum) & (low_sizes <= counts[:, None] - minimum)).any(axis=1))


def quality_table(blocks: list[BlockRecord], margin: float) -> pd.DataFrame:
    """Return a row for each arm of each process that was measured.

    A row is what ran the arm, the pass, the harness's own nanoseconds in a sample, and the flags.
    """
    places, arms_ns = [], []
    for block in blocks:
        for arm in block.arms.values():
            if arm.has_times:
                places.append((*block.configuration.engine, block.pass_, _overhead_ns(block, arm)))
                arms_ns.append(arm.samples_ns)
    return pd.concat([pd.DataFrame(places, columns=[*KEYS, "own_ns"]), quality_flags(arms_ns, margin)], axis=1)


def _overhead_ns(block: BlockRecord, arm: ArmTiming) -> float:
    """Return the harness's own nanoseconds in a sample; NaN where they were not measured."""
    if block.timer_ns is None or block.floors.harness_ns is None:
        return math.nan
    return block.timer_ns + arm.calls * block.floors.harness_ns
