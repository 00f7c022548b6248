"""Are an arm's samples what the statistics take them for? Flags, for the report; nothing is left out for them."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from harness.stats import median_variance

FEWEST = 20  # samples, for anything but outliers to be told
OUTLIER = 5.0  # robust standard deviations above the median
APART = 5.0  # Ashman's D of two modes; 2 is where a mixture first shows two peaks (Ashman, Bird and Zepf 1994)
SHARE = 0.15  # of the samples, in either mode, at least
ERRORS = 3.0  # standard errors that the halves' medians must differ by
AT_ONCE = 4096  # arms; what bounds the memory taken


@dataclass(frozen=True)
class Quality:
    """Of one arm in one process. None where the samples are too few to tell.

    `drift`: log ratio of the medians, second half to first; `autocorrelation`: of successive rounds.
    """

    samples: int
    outliers: int
    drift: float | None
    drifts: bool | None
    autocorrelation: float | None
    bimodal: bool | None


KEYS = ["framework", "execution", "device", "precision", "pass"]
FLAGS = [field.name for field in fields(Quality)]


def quality(samples_ns: list[int], margin: float) -> Quality:
    """Flags of an arm's samples, in the order they were taken; a drift counts beyond `margin` (a fraction)."""
    return qualities([samples_ns], margin)[0]


def qualities(every: list[list[int]], margin: float) -> list[Quality]:
    """The flags of many arms' samples at once: arms with equally many samples are told together."""
    counts: dict[int, list[int]] = {}
    for place, samples_ns in enumerate(every):
        counts.setdefault(len(samples_ns), []).append(place)
    found: dict[int, Quality] = {}
    for places in counts.values():
        for at in range(0, len(places), AT_ONCE):
            some = places[at : at + AT_ONCE]
            logs = np.log(np.array([every[place] for place in some], float))
            found.update(zip(some, _flags(logs, margin), strict=True))
    return [found[place] for place in range(len(every))]


def _flags(logs: np.ndarray, margin: float) -> list[Quality]:
    """Of logs [arms, samples]."""
    count = logs.shape[1]
    middle = np.median(logs, axis=1, keepdims=True)
    limit = middle + OUTLIER * 1.4826 * np.median(np.abs(logs - middle), axis=1, keepdims=True)
    outlying = (logs > limit) & (limit > middle)  # samples that are mostly alike have no outliers
    outliers = outlying.sum(axis=1)
    if count < FEWEST:
        return [Quality(count, int(some), None, None, None, None) for some in outliers]
    first, second = logs[:, : count // 2], logs[:, count // 2 :]
    drift = np.median(second, axis=1) - np.median(first, axis=1)
    error = np.sqrt(median_variance(first) + median_variance(second))
    drifts = np.abs(drift) > np.maximum(math.log1p(margin), ERRORS * error)
    kept = np.where(limit > middle, np.minimum(logs, limit), logs)  # one spike is no correlation
    columns = (outliers, drift, drifts, _autocorrelation(kept), _bimodal(logs - middle, count - outliers))
    return [Quality(count, *row) for row in zip(*(column.tolist() for column in columns), strict=True)]


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
    """A row for each arm of each process that was measured: what ran it, the pass, and the flags."""
    places, every = [], []
    for block in blocks:
        measured = [arm["samples_ns"] for arm in block["arms"].values() if arm["status"] == "ok" and arm["samples_ns"]]
        places += [tuple(block[name] for name in KEYS)] * len(measured)
        every += measured
    flags = pd.DataFrame([(*vars(found).values(),) for found in qualities(every, margin)], columns=FLAGS)
    return pd.concat([pd.DataFrame(places, columns=KEYS), flags], axis=1)
