"""Statistics of gaps, with the process as the unit of inference.

Within a process the two arms alternate, and each round gives one pair. The process's log ratio is the median over
rounds of log(contender / baseline). Over processes, the mean of the log ratios has Student's t interval, from that
gap's own variance over processes and from nothing else. Some gaps vary more than others. An interval that borrowed
from all gaps would cover the truth too seldom for those that vary most, and too often for the rest: in 87% and 99% of
cases where half vary six times as much (20 gaps, 3 processes, shrunken variances as below).

Where a study's processes ran on two or more machines of one kind, the nodes of a cluster, the processes of a node share
what the node is, and are not independent. The node is then the unit: its processes' log ratios are averaged first, and
Student's t is over nodes. With as many processes on each node the interval holds the truth of machines of this kind at
95% however much nodes differ (the between-groups mean square of a one-way layout; Snedecor and Cochran 1989, ch. 13);
more processes on few nodes do not narrow it to nothing.

How much longer a gap has to be measured is planned, not inferred, and a few processes say too little for that. For
planning, and only there, the gap's variance over processes s^2, on d degrees of freedom, is shrunken towards what all
gaps say of it (empirical Bayes; Smyth 2004, "Linear models and empirical Bayes methods", eq. 3; limma calls such a
variance moderated):

    s~^2 = (d0 s0^2 + d s^2) / (d0 + d)        on d0 + d degrees of freedom,

but on no more than all gaps have together, because a prior cannot know more than the data it was fitted to.

The prior variance s0^2 is not one number for all gaps, because a long arm has few rounds and a short one has many. It
is a + b v, where v is the sampling variance of the process medians, from the rounds inside the processes (Maritz and
Jarrett 1978). So a is the variance between processes, and b near 1 says that rounds are nearly independent. The values
of a, b and d0 maximise the likelihood of all s^2, each distributed as s0^2 times F on (d, d0). Three fitted numbers
cost three degrees of freedom: a and b are raised by that.

A gap's direction and its size are two results. The direction is the side of 1 that the interval lies on. The size is a
verdict: it compares the gap with a margin stated beforehand. It uses one-sided t tests at half the level on each side,
so the verdict without correction is that of the 95% interval. The p-values are corrected by Holm's method (Holm 1979)
for the number of gaps that a reader reads as one family.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from scipy import optimize, special  # not scipy.stats, which takes longer to import than a thousand blocks to read

Times = Sequence[float] | np.ndarray
LEVEL = 0.05
LEAST_BETWEEN = 0.05  # least share of a gap's variance that is between processes: rounds alone never explain it
FEWEST = 10  # gaps that a prior can be fitted to
LARGEST_FREEDOM = 20.0  # of the prior: gaps that all seem to vary alike do not make it certain
LONGER, SHORTER, UNKNOWN = "longer", "shorter", "unknown"  # directions: what the contender takes
SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE = "slower", "faster", "equivalent", "inconclusive"  # verdicts: its size


@dataclass(frozen=True)
class Gap:
    """Ratio of times, contender over baseline, with its 95% interval over processes.

    The limits are NaN with one process. `p` is the smallest of the three verdicts' p-values, and `leaning` the verdict
    that it belongs to.
    """

    ratio: float
    low: float
    high: float
    processes: int
    leaning: str
    p: float

    @property
    def direction(self) -> str:
        """Return whether the contender takes longer or shorter than the baseline, by the interval."""
        return LONGER if self.low > 1 else SHORTER if self.high < 1 else UNKNOWN


@dataclass(frozen=True)
class Sample:
    """Log ratios of one gap, one per process, and the mean sampling variance of these medians (`noise`).

    Of a study that was measured on several nodes they are one per node (`node_means`).
    """

    log_ratios: tuple[float, ...]
    noise: float

    @cached_property
    def variance(self) -> float:
        """Return the variance over processes, whose degrees of freedom are the processes less one."""
        return float(np.var(self.log_ratios, ddof=1))


@dataclass(frozen=True)
class Prior:
    """Prior of the variance of any gap of a study: between + factor * noise, on `freedom` degrees of freedom.

    `pooled` is the degrees of freedom of all gaps together.
    """

    between: float = 0.0
    factor: float = 0.0
    freedom: float = 0.0
    pooled: float = math.inf

    def variance(self, noise: float) -> float:
        return self.between + self.factor * noise


NO_PRIOR = Prior()


@dataclass(frozen=True)
class Variances:
    """Variance of a gap between processes and of one round, and the degrees of freedom of their estimate."""

    between: float
    of_round: float
    freedom: float


def gap_sample(processes: Sequence[tuple[Times, Times]], nodes: Sequence[str] = ()) -> Sample:
    """Return a gap's sample from the times (contender, baseline) of each process, one per round and in order.

    `nodes`: the node that each process ran on, if any is known.
    """
    log_ratios = [
        np.log(np.asarray(contender, float) / np.asarray(baseline, float)) for contender, baseline in processes
    ]
    medians = row_medians(log_ratios)
    # The rounds of one process are too few to estimate their spread, so the rounds of all processes are pooled.
    deviations = np.concatenate([row - median for row, median in zip(log_ratios, medians, strict=True)])
    scale = np.mean([len(deviations) / len(row) for row in log_ratios])
    units = node_means(medians, nodes)
    return Sample(tuple(units), float(median_variance(deviations) * scale * len(units) / len(medians)))


def node_means(values: Sequence[float], nodes: Sequence[str]) -> list[float]:
    """Return the mean of the values of each node, in the order of the nodes' names; the values where there is one node.

    `nodes`: the node of each value; empty where none is known.
    """
    names = sorted(set(nodes))
    if len(names) < 2:
        return list(values)
    return [float(np.mean([value for value, own in zip(values, nodes, strict=True) if own == name])) for name in names]


def row_medians(rows: Sequence[np.ndarray]) -> list[float]:
    """Return the median of each row, at once where all are equally long, as the rows of processes mostly are."""
    if len({len(row) for row in rows}) == 1:
        medians: list[float] = np.median(np.stack(rows), axis=1).tolist()
        return medians
    return [float(np.median(row)) for row in rows]


@cache
def _median_probabilities(count: int) -> np.ndarray:
    """Return the probability of each of `count` ordered values to be the median of a resample.

    Source: Maritz and Jarrett 1978, eq. 3.
    """
    half = (count + 1) / 2
    return np.diff(special.betainc(half, half, np.linspace(0, 1, count + 1)))


def median_variance(rounds: np.ndarray) -> Any:
    """Return the sampling variance of the median over the last axis (Maritz and Jarrett 1978); 0 for a single round.

    Uses einsum, not matmul: BLAS would wake threads for products this small, and the last digit would depend on their
    number.
    """
    weights, ordered = _median_probabilities(rounds.shape[-1]), np.sort(rounds, axis=-1)
    deviations = ordered - np.einsum("...i,i->...", ordered, weights)[..., None]
    return np.einsum("...i,...i,i->...", deviations, deviations, weights)


def fit_prior(samples: Sequence[Sample]) -> Prior:
    """Fit the prior that maximises the likelihood of the samples' variances.

    Returns `NO_PRIOR` for fewer than `FEWEST` gaps.
    """
    included = [sample for sample in samples if len(sample.log_ratios) > 1 and sample.variance > 0]
    if len(included) < FEWEST:
        return NO_PRIOR
    variances = np.array([sample.variance for sample in included])
    noises = np.array([sample.noise for sample in included])
    freedoms = np.array([len(sample.log_ratios) - 1 for sample in included])
    unit, pooled = float(np.median(variances)), float(freedoms.sum())
    smallest = unit * 1e-6

    def prior_at(point: np.ndarray) -> Prior:
        between, factor, freedom = np.exp(np.clip(point, -50, 50))
        return Prior(between * unit + smallest, factor, min(freedom, LARGEST_FREEDOM), pooled)

    def negative_log_likelihood(point: np.ndarray) -> float:
        candidate = prior_at(point)
        expected = candidate.between + candidate.factor * noises
        density = _f_log_density(variances / expected, freedoms, candidate.freedom)
        return -float(np.sum(density - np.log(expected)))

    fits = [
        optimize.minimize(negative_log_likelihood, np.log(start), method="Nelder-Mead", options={"maxiter": 2000})
        for start in ((1.0, 1.0, 4.0), (0.1, 1.0, 20.0), (1.0, 0.01, 20.0))
    ]
    likeliest = prior_at(min(fits, key=lambda fit: fit.fun).x)
    correction = pooled / (pooled - 3)  # three fitted numbers make the likeliest variance too low, as in REML
    return replace(likeliest, between=likeliest.between * correction, factor=likeliest.factor * correction)


def _f_log_density(ratio: np.ndarray, freedoms: np.ndarray, prior_freedom: float) -> np.ndarray:
    """Return the logarithm of the density of the F distribution on (freedoms, prior_freedom), elementwise."""
    half, prior_half = freedoms / 2, prior_freedom / 2
    constant = prior_half * np.log(prior_freedom) + half * np.log(freedoms)
    numerator = constant + special.xlogy(half - 1, ratio)
    denominator = (freedoms + prior_freedom) / 2 * np.log(prior_freedom + freedoms * ratio)
    return np.asarray(numerator - (denominator + special.betaln(half, prior_half)))


def shrunken_variance(sample: Sample, prior: Prior) -> tuple[float, float]:
    """Return a gap's shrunken variance over two or more processes, and its degrees of freedom."""
    count = len(sample.log_ratios)
    freedom = prior.freedom + count - 1
    variance = (prior.freedom * prior.variance(sample.noise) + (count - 1) * sample.variance) / freedom
    return variance, min(freedom, prior.pooled)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of a quantity over processes, one value each, and its 95% interval.

    The limits are NaN with one process.
    """
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return mean, math.nan, math.nan
    half_width = _t_quantile(count - 1) * math.sqrt(float(np.var(values, ddof=1)) / count)
    return mean, mean - half_width, mean + half_width


def welch_interval(difference: Any, half_widths: Sequence[Any], counts: Sequence[Any]) -> tuple[Any, Any]:
    """Return the half-width of the 95% interval of a difference of two means, and the p-value of none, elementwise.

    `half_widths` are those of the means' 95% intervals, and `counts` their numbers of processes. Welch's t (1947), with
    Satterthwaite's degrees of freedom.
    """
    probability, freedoms = 1 - LEVEL / 2, np.stack([np.asarray(count, float) - 1 for count in counts])
    variances = (np.stack([np.asarray(w, float) for w in half_widths]) / special.stdtrit(freedoms, probability)) ** 2
    variance = variances.sum(axis=0)
    freedom = variance**2 / (variances**2 / freedoms).sum(axis=0)
    error = np.sqrt(variance)
    return special.stdtrit(freedom, probability) * error, 2 * special.stdtr(freedom, -np.abs(difference) / error)


def welch_test(difference: Any, half_widths: Sequence[Any], counts: Sequence[Any]) -> Any:
    """Return whether two means differ at 95%, elementwise; see `welch_interval`."""
    return welch_interval(difference, half_widths, counts)[1] < LEVEL


def estimate_gap(sample: Sample, margin: float) -> Gap:
    """Return the gap over processes; `margin` is a fraction, such as 0.02."""
    count, mean = len(sample.log_ratios), float(np.mean(sample.log_ratios))
    if count < 2:
        return Gap(math.exp(mean), math.nan, math.nan, count, INCONCLUSIVE, 1.0)
    freedom = count - 1
    error = math.sqrt(sample.variance / count) or 1e-12  # 0 where all processes agree to the last digit
    half_width = _t_quantile(freedom) * error
    log_margin = math.log1p(margin)

    def above(limit: float) -> float:
        """Return the p-value of the mean being at most `limit`."""
        return float(special.stdtr(freedom, (limit - mean) / error))

    def below(limit: float) -> float:
        return float(special.stdtr(freedom, (mean - limit) / error))

    p_values = {
        SLOWER: above(log_margin),
        FASTER: below(-log_margin),
        EQUIVALENT: max(above(-log_margin), below(log_margin)),
    }
    leaning = min(p_values, key=lambda verdict: p_values[verdict])
    return Gap(
        math.exp(mean),
        math.exp(mean - half_width),
        math.exp(mean + half_width),
        count,
        leaning,
        min(1.0, 2 * p_values[leaning]),
    )


def variance_components(sample: Sample, rounds: float, prior: Prior) -> Variances | None:
    """Return a gap's shrunken variance in its two parts, for planning; None with fewer than two processes."""
    count = len(sample.log_ratios)
    if count < 2:
        return None
    variance, freedom = shrunken_variance(sample, prior)
    factor = prior.factor if prior.freedom else 1.0
    within = min(factor * sample.noise, (1 - LEAST_BETWEEN) * variance)
    return Variances(variance - within, within * rounds, freedom)


def required_processes(variances: Variances, rounds: float, target: float) -> int:
    """Return the number of processes of `rounds` rounds that brings a gap's interval to ±`target`.

    Student's t is that of the variance's degrees of freedom, or of the final interval's where they are fewer.
    """
    variance, log_target = variances.between + variances.of_round / rounds, math.log1p(target)
    count = max(2, math.ceil(variance * (_t_quantile(variances.freedom) / log_target) ** 2))
    while _t_quantile(count - 1) * math.sqrt(variance / count) > log_target:
        count += 1
    return count


@cache
def _t_quantile(freedom: float) -> float:
    """Return the half-width of a 95% interval in standard errors, by Student's t."""
    return float(special.stdtrit(freedom, 1 - LEVEL / 2))


def verdicts(gaps: Sequence[Gap]) -> list[str]:
    """Return a verdict for each gap of one family, Holm-corrected over all of them."""
    return [
        g.leaning if p <= LEVEL else INCONCLUSIVE for g, p in zip(gaps, holm_adjust([g.p for g in gaps]), strict=True)
    ]


def rate_interval(hits: int, cases: int) -> tuple[float, float, float]:
    """Return a rate and its 95% interval (Clopper and Pearson 1934); `cases` is at least 1."""
    low = special.betaincinv(hits, cases - hits + 1, LEVEL / 2) if hits else 0.0
    high = special.betaincinv(hits + 1, cases - hits, 1 - LEVEL / 2) if hits < cases else 1.0
    return hits / cases, float(low), float(high)


def half_width(low: Any, high: Any) -> Any:
    """Return the half-width of a ratio's interval as a fraction, for numbers or columns."""
    return (high / low) ** 0.5 - 1


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given.

    By hand, because scipy has no Holm, and statsmodels would be one more package for these five lines.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
