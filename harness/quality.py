"""Are an arm's samples what the statistics take them for? Flags, for the report; nothing is left out for them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.stats import median_variance

FEWEST = 20  # samples, for anything but outliers to be told
OUTLIER = 5.0  # robust standard deviations above the median
APART = 5.0  # Ashman's D of two modes; 2 is where a mixture first shows two peaks (Ashman, Bird and Zepf 1994)
SHARE = 0.15  # of the samples, in either mode, at least
ERRORS = 3.0  # standard errors that the halves' medians must differ by


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


def quality(samples_ns: list[int], margin: float) -> Quality:
    """Flags of an arm's samples, in the order they were taken; a drift counts beyond `margin` (a fraction)."""
    logs = np.log(np.asarray(samples_ns, float))
    middle = np.median(logs)
    deviation = 1.4826 * float(np.median(np.abs(logs - middle)))
    outlying = logs - middle > OUTLIER * deviation if deviation > 0 else np.zeros(len(logs), bool)
    if len(logs) < FEWEST:
        return Quality(len(logs), int(outlying.sum()), None, None, None, None)
    first, second = logs[: len(logs) // 2], logs[len(logs) // 2 :]
    drift = float(np.median(second) - np.median(first))
    error = math.sqrt(median_variance(first) + median_variance(second))
    drifts = abs(drift) > max(math.log1p(margin), ERRORS * error)
    kept = np.clip(logs, None, middle + OUTLIER * deviation)  # one spike is no correlation
    return Quality(len(logs), int(outlying.sum()), drift, drifts, _autocorrelation(kept), _bimodal(logs[~outlying]))


def _autocorrelation(values: np.ndarray) -> float:
    """Of lag 1; 0 for values that are all alike."""
    apart = values - values.mean()
    total = float(apart @ apart)
    return float(apart[1:] @ apart[:-1]) / total if total else 0.0


def _bimodal(values: np.ndarray) -> bool:
    """Whether some split of the ordered values leaves two modes that lie clearly apart."""
    ordered = np.sort(values)
    least = max(3, math.ceil(SHARE * len(ordered)))
    return any(_apart(ordered[:at], ordered[at:]) > APART for at in range(least, len(ordered) - least + 1))


def _apart(low: np.ndarray, high: np.ndarray) -> float:
    """Ashman's D; 0 for two sets of one value each the same."""
    spread = math.sqrt(low.var(ddof=1) + high.var(ddof=1))
    distance = float(high.mean() - low.mean())
    return math.inf if spread == 0 < distance else math.sqrt(2) * distance / spread if spread else 0.0


def of_blocks(blocks: list[dict[str, Any]], margin: float) -> list[dict[str, Any]]:
    """A row for each arm of each process that was measured: its keys and its flags."""
    rows = []
    for block in blocks:
        for name, arm in block["arms"].items():
            if arm["status"] == "ok" and arm["samples_ns"]:
                keys = {key: block[key] for key in ("framework", "execution", "pass", "threads", "replicate")}
                rows.append(
                    keys
                    | {"workload": block["workload"]["name"], "arm": name}
                    | vars(quality(arm["samples_ns"], margin))
                )
    return rows
