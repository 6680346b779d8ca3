"""Intervals of scores and of their differences: the one rule of terminal, report, budgets and comparisons.

Examples are drawn again with replacement (bootstrap), the same for all probes, so that what an example does to both
sides of a difference cancels. Few seeds cannot be drawn again: from three on, their spread beyond that of the examples
enters by Student's t. See docs/method.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Numbers = NDArray[np.float64]

#: Confidence of all intervals.
CONFIDENCE = 0.95
#: Number of resamples of the examples, and the seed that draws them.
RESAMPLES, SEED = 4000, 0
#: Fewest seeds whose spread means something: with two, Student's t is 12.7.
FEWEST_SEEDS = 3
#: Random numbers that are held at once while examples are drawn.
_DRAWN = 4_000_000

Unit = Literal["examples", "pairs", "queries"]
"""What is drawn again: examples of a probe, or what an embedding is judged by."""
Basis = Literal["examples and seeds", "seeds", "none"] | Unit
"""What an interval takes into account."""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval, NaN where unknown.

    Args:
        value: The value.
        low: Lower end.
        high: Upper end.
        examples: Number of examples behind the interval; 0 for none.
        seeds: Number of probe seeds.
        basis: What the interval takes into account.
        examples_error: Standard error from the choice of the examples.
        seeds_error: Standard error from the choice of the seeds; 0 where it is not taken into account.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    examples: int = 0
    seeds: int = 0
    basis: Basis = "none"
    examples_error: float = math.nan
    seeds_error: float = 0.0


@dataclass(frozen=True, eq=False)
class Sample:
    """A quantity of some probes: one value a seed on all examples, and one a seed in each resample of the examples.

    Args:
        seeds: (S,), the value of each seed. Their mean is the estimate.
        resampled: (B, S), the values in B resamples; None without predictions.
        examples: Number of examples.
        unit: What an example is.
    """

    seeds: Numbers
    resampled: Numbers | None = None
    examples: int = 0
    unit: Unit = "examples"

    def minus(self, other: Sample) -> Sample:
        """The paired difference, seed by seed and resample by resample."""
        both = self.resampled is not None and other.resampled is not None
        resampled = self.resampled - other.resampled if both else None  # type: ignore[operator]
        return Sample(self.seeds - other.seeds, resampled, self.examples if both else 0, self.unit)


def weighted(samples: Sequence[Sample], weights: Sequence[float]) -> Sample:
    """The weighted sum of quantities of the same seeds and examples, seed by seed and resample by resample."""
    seeds = sum(weight * one.seeds for one, weight in zip(samples, weights, strict=True))
    known = [one.resampled for one in samples if one.resampled is not None]
    if len(known) < len(samples):
        return Sample(np.asarray(seeds))
    resampled = sum(weight * one for one, weight in zip(known, weights, strict=True))
    return Sample(np.asarray(seeds), np.asarray(resampled), samples[0].examples, samples[0].unit)


def estimate(
    sample: Sample, bounds: tuple[float, float] = (-math.inf, math.inf), also: Sequence[Sample] = ()
) -> Estimate:
    """The mean over the seeds with its 95 % interval, clipped to `bounds`.

    Args:
        sample: The quantity.
        bounds: Lowest and highest possible value.
        also: The same quantity by other things that were drawn, such as random orders, in place of the seeds.
    """
    mean = float(sample.seeds.mean()) if len(sample.seeds) else math.nan
    resampled = None if sample.resampled is None else sample.resampled.mean(axis=1)
    return _estimate(mean, resampled, (sample, *also), bounds)


def relative_estimate(
    difference: Sample, baseline: Sample, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    r"""A mean difference divided by the size of the mean baseline, with its 95 % interval; NaN for a baseline of 0.

    The spread over the seeds is that of the linearised ratio :math:`d_s / |b| - (d / |b|)\, b_s / b`.
    """
    below = float(baseline.seeds.mean()) if len(baseline.seeds) else 0.0
    if below == 0 or not math.isfinite(below):
        return Estimate(math.nan, seeds=len(difference.seeds))
    value = float(difference.seeds.mean()) / abs(below)
    linear = difference.seeds / abs(below) - value * baseline.seeds / below
    if difference.resampled is None or baseline.resampled is None:
        return _estimate(value, None, (Sample(linear),), bounds)
    means, below_means = difference.resampled.mean(axis=1), baseline.resampled.mean(axis=1)
    ratios = np.divide(means, np.abs(below_means), out=np.full_like(means, value), where=below_means != 0)
    spread = difference.resampled / abs(below) - value * baseline.resampled / below
    return _estimate(value, ratios, (Sample(linear, spread, difference.examples, difference.unit),), bounds)


def _estimate(
    value: float, resampled: Numbers | None, samples: Sequence[Sample], bounds: tuple[float, float]
) -> Estimate:
    """The interval around a value from its resamples (B,), and from the spread of seeds and of what else was drawn."""
    sample = samples[0]
    number = len(sample.seeds)
    if not math.isfinite(value):
        return Estimate(value, seeds=number)
    if resampled is None or not np.isfinite(resampled).all():
        _, low, high = mean_interval(sample.seeds - sample.seeds.mean())
        low, high = np.clip([value + low, value + high], *bounds).tolist()
        return Estimate(value, low, high, 0, number, "none" if math.isnan(low) else "seeds")
    drawn, errors = resampled, [_error(one) for one in samples]
    for place, (one, error) in enumerate(zip(samples, errors, strict=True)):
        if error > 0:
            drawn = drawn + error * _student(len(resampled), len(one.seeds), SEED + 1 + place)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.clip(np.percentile(drawn, [tail, 100 - tail]), *bounds).tolist()
    probes = number >= FEWEST_SEEDS and sample.unit == "examples"
    basis: Basis = "examples and seeds" if probes else sample.unit
    own, others = float(resampled.std(ddof=1)), math.hypot(*errors)
    return Estimate(value, min(low, value), max(high, value), sample.examples, number, basis, own, others)


def _error(sample: Sample) -> float:
    """Standard error of the mean over seeds from their own spread, without what the choice of the examples adds."""
    number = len(sample.seeds)
    if number < FEWEST_SEEDS or sample.resampled is None:
        return 0.0
    # Drawing examples again adds to the variance over seeds what drawing them once has added.
    found = float(sample.seeds.var(ddof=1))
    added = float(sample.resampled.var(axis=1, ddof=1).mean()) - found
    return math.sqrt(max(found - max(added, 0.0), 0.0) / number)


def _student(resamples: int, drawn: int, seed: int) -> Numbers:
    """Evenly spaced quantiles of Student's t for a number of seeds, in a random order that is always the same."""
    places = (np.random.default_rng(seed).permutation(resamples) + 0.5) / resamples
    found: Numbers = stats.t.ppf(places, drawn - 1)
    return found


def mean_interval(values: ArrayLike, bounds: tuple[float, float] = (-math.inf, math.inf)) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds by Student's t, clipped; the ends are NaN below three values.

    All are NaN if a value is NaN, or for none. It covers new seeds, and no new examples.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean()) if len(array) else math.nan
    if len(array) < FEWEST_SEEDS:
        return mean, math.nan, math.nan
    half = float(stats.t.interval(CONFIDENCE, len(array) - 1)[1] * stats.sem(array))
    low, high = np.clip([mean - half, mean + half], *bounds).tolist()
    return mean, low, high


def resampled_sums(counts: Numbers, resamples: int = RESAMPLES, seed: int = SEED) -> Numbers:
    """Sums (B, K) over resamples of N examples of their counts (N, K), which are whole numbers; N is at least 2.

    The sums are exact, so that no order of adding changes them.
    """
    return resampled(len(counts), lambda times: times @ counts, resamples, seed)


def resampled(
    number: int, statistic: Callable[[Numbers], Numbers], resamples: int = RESAMPLES, seed: int = SEED
) -> Numbers:
    """Values (B, K) of a statistic over B resamples of N examples; the same N, B and seed draw the same ones.

    Args:
        number: Number of examples N, at least 2.
        statistic: Function of how often each example occurs in b of the resamples, (b, N), that returns (b, K).
        resamples: Number of resamples B.
        seed: Seed of the draw.
    """

    def values(drawn: NDArray[np.int64], axis: int = -1) -> Numbers:
        rows = drawn.reshape(-1, number) + number * np.arange(drawn.size // number)[:, None]
        times = np.bincount(rows.ravel(), minlength=rows.size).reshape(rows.shape).astype(np.float64)
        found = statistic(times)
        shaped: Numbers = found.T.reshape(found.shape[1], *drawn.shape[:-1])
        return shaped

    found = stats.bootstrap(
        (np.arange(number),),
        values,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _DRAWN // number),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    drawn: Numbers = np.ascontiguousarray(found.bootstrap_distribution.T)
    return drawn
