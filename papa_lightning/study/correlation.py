"""Rank correlation of baseline scores and drops across encoders."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from papa_lightning.errors import PapaError
from papa_lightning.study.intervals import CONFIDENCE
from papa_lightning.text import counted

#: Stands for a rank correlation that is not defined.
_UNDEFINED = 2.0


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation from -1 to 1, NaN where it is not defined, and the ends of its 95 % interval."""

    rho: float
    low: float
    high: float
    encoders: int
    tasks: int

    def __str__(self) -> str:
        """The correlation, its interval, and the numbers of encoders and tasks."""
        on = f"{counted(self.encoders, 'encoder')}, {counted(self.tasks, 'task')}"
        if math.isnan(self.rho):
            return f"rho not defined ({on})"
        interval = "no interval" if math.isnan(self.low) else f"95 % interval {self.low:.2f} to {self.high:.2f}"
        return f"rho {self.rho:.2f} ({interval}; {on})"


def rank_correlation(
    baseline: ArrayLike, drop: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> RankCorrelation:
    """Spearman's rank correlation of baseline scores and drops across encoders: do better models lose more?

        rho = sum r s / sqrt(sum r^2 * sum s^2),    r, s: centred ranks of baseline and drop

    over all tasks together. Encoders are ranked within each task, because scores of different tasks cannot be compared
    (one task's 0.5 may be another's 0.9). For one task this is Spearman's rho.

    The interval is the percentile bootstrap over encoders, each with all its tasks, whose results are not independent.
    Resamples in which all ranks are tied are left out. Below 3 encoders there is neither an interval nor a rho.

    A baseline score that is high by chance gives a larger drop: differences between encoders should be large beside
    the intervals of :func:`summarize` before rho is interpreted.

    Args:
        baseline: Scores at share 0, (encoders,) for one task or (tasks, encoders); NaN where there is none.
        drop: Loss of score, in the same shape.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        PapaError: When the shapes differ or are others, or `resamples` is below 1.

    Example:
        >>> rank_correlation([0.7, 0.8, 0.9], [0.1, 0.3, 0.2]).rho
        0.5
    """
    x, y = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (baseline, drop))
    if x.shape != y.shape or x.ndim != 2:
        raise PapaError(
            f"baseline has shape {np.shape(baseline)} and drop {np.shape(drop)}: pass both as (encoders,) or as "
            "(tasks, encoders)."
        )
    if resamples < 1:
        raise PapaError(f"resamples is {resamples!r}, but must be at least 1.")
    known = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(known, x, np.nan), np.where(known, y, np.nan)
    encoders, tasks = int(known.any(axis=0).sum()), int(known.any(axis=1).sum())
    if encoders < 3:
        return RankCorrelation(math.nan, math.nan, math.nan, encoders, tasks)
    found = stats.bootstrap(
        (x, y),
        # scipy warns of NaN.
        lambda x, y, axis=-1: np.nan_to_num(_pooled_rho(x, y), nan=_UNDEFINED),
        paired=True,
        axis=-1,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    rhos = found.bootstrap_distribution[found.bootstrap_distribution != _UNDEFINED]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(rhos, [tail, 100 - tail]).tolist() if len(rhos) else (math.nan, math.nan)
    return RankCorrelation(float(_pooled_rho(x, y)), low, high, encoders, tasks)


def _pooled_rho(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlations (...) of the centred ranks of values (tasks, ..., encoders); NaN values are left out."""
    r, s = _centred_ranks(x), _centred_ranks(y)
    squares = (r**2).sum(axis=(0, -1)) * (s**2).sum(axis=(0, -1))
    rho = np.full(squares.shape, np.nan)
    np.divide((r * s).sum(axis=(0, -1)), np.sqrt(squares), out=rho, where=squares > 0)
    return rho.clip(-1.0, 1.0)


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks along the last axis minus their mean, equal values sharing a rank; 0 for NaN."""
    ranks = stats.rankdata(values, axis=-1, nan_policy="omit")
    known = ~np.isnan(ranks)
    mean = np.where(known, ranks, 0.0).sum(axis=-1, keepdims=True) / known.sum(axis=-1, keepdims=True).clip(1)
    return np.where(known, ranks - mean, 0.0)
