"""Are an arm's samples what the statistics take them for? Flags, for the report; nothing is left out for them."""

import math
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.stats import median_variance

FEWEST = 20  # samples, for anything but outliers to be told
OUTLIER = 5.0  # robust standard deviations above the median
APART = 5.0  # Ashman's D of two modes; 2 is where a mixture first shows two peaks (Ashman, Bird and Zepf 1994)
SHARE = 0.15  # of the samples, in either mode, at least
ERRORS = 3.0  # standard errors that the halves' medians must differ by
AT_ONCE = 4096  # arms; what bounds the memory taken
KEYS = ["framework", "execution", "device", "precision", "pass"]
FLAGS = ["samples", "median_ns", "above", "outliers", "drift", "drifts", "autocorrelation", "bimodal"]


def qualities(every: list[list[int]], margin: float) -> pd.DataFrame:
    """The flags of many arms' samples, each arm's in nanoseconds and in the order they were taken: a row of FLAGS each.

    `median_ns` is of a sample, the geometric mean of the middle two where their number is even; `above` the part by
    which it lies above the shortest, which grows with whatever else a machine does; `drift` the log ratio
    of the medians, second half to first, which `drifts` beyond `margin` (a fraction); `autocorrelation` that of
    successive rounds. From `drift` on they are missing where the samples are too few to tell.
    """
    counts: dict[int, list[int]] = {}
    for place, samples_ns in enumerate(every):
        counts.setdefault(len(samples_ns), []).append(place)
    found = [pd.DataFrame(columns=FLAGS)] if not every else []
    for places in counts.values():  # arms with equally many samples are told together
        for at in range(0, len(places), AT_ONCE):
            some = places[at : at + AT_ONCE]
            logs = np.log(np.array([every[place] for place in some], float))
            found.append(pd.DataFrame(_flags(logs, margin), index=some, columns=FLAGS))
    return pd.concat(found).sort_index()


def _flags(logs: np.ndarray, margin: float) -> dict[str, Any]:
    """Of logs [arms, samples]."""
    arms, count = logs.shape
    middle = np.median(logs, axis=1, keepdims=True)
    limit = middle + OUTLIER * 1.4826 * np.median(np.abs(logs - middle), axis=1, keepdims=True)
    outlying = (logs > limit) & (limit > middle)  # samples that are mostly alike have no outliers
    outliers = outlying.sum(axis=1)
    above = np.expm1(middle[:, 0] - logs.min(axis=1))
    known = {"samples": count, "median_ns": np.exp(middle[:, 0]), "above": above, "outliers": outliers}
    if count < FEWEST:
        untold = pd.array([None] * arms, "boolean")
        return known | {"drift": math.nan, "drifts": untold, "autocorrelation": math.nan, "bimodal": untold}
    first, second = logs[:, : count // 2], logs[:, count // 2 :]
    drift = np.median(second, axis=1) - np.median(first, axis=1)
    error = np.sqrt(median_variance(first) + median_variance(second))
    kept = np.where(limit > middle, np.minimum(logs, limit), logs)  # one spike is no correlation
    return known | {
        "drift": drift,
        "drifts": pd.array(np.abs(drift) > np.maximum(math.log1p(margin), ERRORS * error), "boolean"),
        "autocorrelation": _autocorrelation(kept),
        "bimodal": pd.array(_bimodal(logs - middle, count - outliers), "boolean"),
    }


def _autocorrelation(values: np.ndarray) -> np.ndarray:
    """Of lag 1, for each row; 0 for values that are all alike."""
    apart = values - values.mean(axis=1, keepdims=True)
    total = (apart**2).sum(axis=1)
    return np.divide((apart[:, 1:] * apart[:, :-1]).sum(axis=1), total, out=np.zeros(len(total)), where=total > 0)


def _bimodal(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Whether some split of each row's `kept` lowest values leaves two modes that lie clearly apart.

    Ashman's D for every split at once, from running sums of the ordered values and their squares.
    """
    ordered = np.sort(values, axis=1)[:, : int(kept.max())]
    sums, squares = np.cumsum(ordered, axis=1), np.cumsum(ordered**2, axis=1)
    last = (kept - 1)[:, None]
    low = np.arange(1, ordered.shape[1])[None]  # values below the split
    high = np.maximum(kept[:, None] - low, 1)
    least = np.maximum(3, np.ceil(SHARE * kept))[:, None]
    means = sums[:, :-1] / low, (np.take_along_axis(sums, last, 1) - sums[:, :-1]) / high
    powers = squares[:, :-1], np.take_along_axis(squares, last, 1) - squares[:, :-1]
    spread = sum(
        np.maximum(power - size * mean**2, 0) / np.maximum(size - 1, 1)
        for power, size, mean in zip(powers, (low, high), means, strict=True)
    )
    apart = math.sqrt(2) * (means[1] - means[0]) > APART * np.sqrt(spread)
    return np.asarray((apart & (low >= least) & (low <= kept[:, None] - least)).any(axis=1))


def of_blocks(blocks: list[dict[str, Any]], margin: float) -> pd.DataFrame:
    """A row for each arm of each process that was measured: what ran it, the pass, the harness's own nanoseconds in a
    sample, and the flags.
    """
    places, every = [], []
    for block in blocks:
        place = tuple(block[name] for name in KEYS)
        for arm in block["arms"].values():
            if arm["status"] == "ok" and arm["samples_ns"]:
                places.append((*place, _own_ns(block, arm)))
                every.append(arm["samples_ns"])
    return pd.concat([pd.DataFrame(places, columns=[*KEYS, "own_ns"]), qualities(every, margin)], axis=1)


def _own_ns(block: dict[str, Any], arm: dict[str, Any]) -> float:
    """What of a sample is the harness's own; NaN where that was not measured."""
    timer_ns, harness_ns = block["timer_ns"], block.get("floors", {}).get("harness_ns")
    return math.nan if None in (timer_ns, harness_ns) else float(timer_ns + arm["calls"] * harness_ns)
