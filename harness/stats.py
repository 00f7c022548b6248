"""The statistics: the process is the unit of inference.

Within a process the two arms alternate; its log ratio is the median over rounds of
log(contender / baseline), each round giving one pair. Over processes, the mean of the log ratios has
a t interval. Verdicts compare with a margin stated beforehand, by one-sided t tests at half the
level on each side (so the verdict without correction is that of the 95% interval), corrected for
the number of gaps by Holm's method (Holm 1979).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05
SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE = "slower", "faster", "equivalent", "inconclusive"


@dataclass(frozen=True)
class Gap:
    """A ratio of times with its 95% interval over processes; NaN limits with one process.

    `p` is the smallest of the three verdicts' p-values, and `leaning` the verdict it belongs to.
    """

    ratio: float
    low: float
    high: float
    processes: int
    leaning: str
    p: float


def log_ratio(contender: Sequence[float], baseline: Sequence[float]) -> float:
    """One process's log ratio: the median over rounds of the paired log ratios."""
    return float(np.median(np.log(np.asarray(contender, float) / np.asarray(baseline, float))))


def gap(log_ratios: Sequence[float], margin: float) -> Gap:
    """The gap over processes, from one log ratio a process."""
    values = np.asarray(log_ratios, float)
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Gap(math.exp(mean), math.nan, math.nan, count, INCONCLUSIVE, 1.0)
    error = float(np.std(values, ddof=1) / math.sqrt(count)) or 1e-12  # all processes alike to the last digit
    half = stats.t.ppf(1 - LEVEL / 2, count - 1) * error
    edge = math.log1p(margin)

    def above(limit: float) -> float:
        """p-value of the mean being at most `limit`."""
        return float(stats.t.sf((mean - limit) / error, count - 1))

    ps = {SLOWER: above(edge), FASTER: 1 - above(-edge), EQUIVALENT: max(above(-edge), 1 - above(edge))}
    leaning = min(ps, key=lambda verdict: ps[verdict])
    return Gap(math.exp(mean), math.exp(mean - half), math.exp(mean + half), count, leaning, min(1.0, 2 * ps[leaning]))


def verdicts(gaps: Sequence[Gap]) -> list[str]:
    """One verdict a gap, Holm-corrected over all of them."""
    return [g.leaning if p <= LEVEL else INCONCLUSIVE for g, p in zip(gaps, holm([g.p for g in gaps]), strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable")):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted
