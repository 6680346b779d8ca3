"""Means, intervals and rank correlations of the results of a study."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from papa_lightning.errors import PapaError
from papa_lightning.study.results import baseline_scores
from papa_lightning.text import Blocks, Table

#: Widest line of :func:`format_summary`, in characters.
WIDTH = 100
_GAP = 2
#: Confidence of all intervals.
CONFIDENCE = 0.95
#: Stands for a rank correlation that is not defined.
_UNDEFINED = 2.0
#: Columns that identify a row of the summary.
_GROUP = ["encoder", "task", "criterion", "constants", "share", "metric"]
_ESTIMATES = {"score": ("mean", "low", "high")} | {
    name: (name, f"{name}_low", f"{name}_high") for name in ("difference", "relative")
}


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the probe seeds with 95 % intervals, of the scores and of their changes against share 0.

        mean +- t(0.975, n - 1) * s / sqrt(n)

    (Student's t; n probe seeds, s the standard deviation over them.) The changes are paired: taken seed by seed, and
    then averaged, so that the effect of a seed on both shares cancels.

    Random rankings ("random:0", "random:1", ...) are one row, "random". Each probe seed's mean over them is one value
    of n, since pairs of seed and ranking are not independent: the interval is that of new probes, not new rankings.

    Args:
        table: Result of :func:`~papa_lightning.study.results.results_table`.

    Returns:
        A row for each encoder, task, criterion, kind of constants, share and metric, in the order of the table, with

        - is_score, constant_heads, total_heads: as in the table;
        - n: number of probe seeds; rankings: number of ranking seeds, 1 for a criterion that is not random. In an
          interrupted study a probe seed's mean is over the rankings that it has;
        - mean, low, high: the score;
        - difference, difference_low, difference_high: score minus score at share 0;
        - relative, relative_low, relative_high: the mean of the relative changes of the seeds;
        - ranking_deviation: standard deviation over the rankings of their mean scores, NaN for a single one.

        One seed has a mean and NaN as interval. A score that is NaN, or a seed without a score at share 0, makes
        everything that depends on it NaN: no value is left out silently.

    Example:
        >>> from papa_lightning.study.results import CellResult, results_table
        >>> def cell(share: float, seed: int, score: float) -> CellResult:
        ...     scores, heads = {"f1": score}, int(4 * share)
        ...     return CellResult("e", "t", "taylor", share, heads, 4, seed, "average", "f1", scores, 1.0, {}, "1f")
        >>> cells = [cell(0, 0, 0.8), cell(0, 1, 0.6), cell(1, 0, 0.6), cell(1, 1, 0.3)]
        >>> summarize(results_table(cells))[["share", "n", "mean", "difference", "relative"]].round(3)
           share  n  mean  difference  relative
        0    0.0  2  0.70        0.00     0.000
        1    1.0  2  0.45       -0.25    -0.375
    """
    paired = table.assign(difference=table["score"] - baseline_scores(table), relative=table["relative_change"])
    rows = [dict(zip(_GROUP, key, strict=True)) | _row(rows) for key, rows in paired.groupby(_GROUP, sort=False)]
    estimates = [name for names in _ESTIMATES.values() for name in names]
    columns = [*_GROUP, "is_score", "constant_heads", "total_heads", "n", "rankings", *estimates, "ranking_deviation"]
    return pd.DataFrame(rows, columns=columns)


def _row(rows: pd.DataFrame) -> dict[str, Any]:
    rankings = rows["ranking_seed"].nunique()
    found: dict[str, Any] = {name: rows[name].iloc[0] for name in ("is_score", "constant_heads", "total_heads")}
    found |= {"n": rows["seed"].nunique(), "rankings": max(rankings, 1)}
    of_seeds = rows.groupby("seed")[list(_ESTIMATES)].mean(skipna=False)
    for value, names in _ESTIMATES.items():
        found |= dict(zip(names, mean_interval(of_seeds[value].to_numpy(float)), strict=True))
    found["ranking_deviation"] = math.nan
    if rankings > 1:
        of_rankings = rows.groupby("ranking_seed")["score"].mean(skipna=False).to_numpy(float)
        found["ranking_deviation"] = float(of_rankings.std(ddof=1))
    return found


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean and 95 % interval by Student's t; the ends are NaN for one value, all if a value is NaN, or for none."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean()) if len(array) else math.nan
    if len(array) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.interval(CONFIDENCE, len(array) - 1)[1] * stats.sem(array))
    return mean, mean - half, mean + half


def counted(number: int, noun: str) -> str:
    """A number of things: "1 task", "2 tasks"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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


def format_summary(summary: pd.DataFrame) -> Blocks:
    """The tasks' own scores as tables, one for each encoder, task and kind of constants.

    Rows are shares of constant heads, columns are criteria, and a cell reads ``0.812 ± 0.006 (-3.7 %)``: the mean, half
    of its 95 % interval, and the relative change against share 0. Unknown parts are left out; "-" is a missing score.
    Criteria that do not fit into 100 characters follow in another table.

    Args:
        summary: Result of :func:`summarize`.

    Example:
        >>> from papa_lightning.study.results import CellResult, results_table
        >>> def cell(share: float, seed: int, score: float) -> CellResult:
        ...     scores, heads = {"f1": score}, int(4 * share)
        ...     return CellResult("bert", "sst2", "taylor", share, heads, 4, seed, "average", "f1", scores, 1.0, {}, "")
        >>> cells = [cell(0, 0, 0.80), cell(0, 1, 0.82), cell(1, 0, 0.78), cell(1, 1, 0.79)]
        >>> print(format_summary(summarize(results_table(cells))))
        bert on sst2: f1 (95 % interval and change against share 0; 2 probe seeds; constants: average)
        share  taylor
        0 %    0.810 ± 0.127
        100 %  0.785 ± 0.064 (-3.1 %)
    """
    own = summary[summary["is_score"].astype(bool)]
    groups = own.groupby(["encoder", "task", "constants", "metric"], sort=False)
    return Blocks([table for _, rows in groups for table in _tables(rows)] or ["no scores"])


def _tables(rows: pd.DataFrame) -> Iterator[Table]:
    """The scores of one encoder, task and kind of constants."""
    first, seeds = rows.iloc[0], rows["n"]
    span = str(seeds.max()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    about = f"95 % interval and change against share 0; {span} probe seed{'' if seeds.max() == 1 else 's'}"
    title = f"{first['encoder']} on {first['task']}: {first['metric']} ({about}; constants: {first['constants']})"
    title = textwrap.fill(title, WIDTH, subsequent_indent="  ")
    shares = sorted(set(rows["share"]))
    names = [f"{100 * share:.4g} %" for share in shares]
    columns = {}
    for criterion in dict.fromkeys(rows["criterion"]):
        known = {row["share"]: _cell(row) for _, row in rows[rows["criterion"] == criterion].iterrows()}
        heading = criterion if len(criterion) <= 40 else f"{criterion[:37]}..."
        columns[heading] = [known.get(share, "-") for share in shares]
    for chosen in _fitting(columns, WIDTH - max(map(len, ["share", *names]))):
        cells = zip(names, *(columns[heading] for heading in chosen), strict=True)
        yield Table(("share", *chosen), list(cells), left=1 + len(chosen), title=title)
        title = ""


def _cell(row: pd.Series) -> str:
    if math.isnan(row["mean"]):
        return "not a number"
    half, change = (row["high"] - row["low"]) / 2, row["relative"]
    interval = "" if math.isnan(half) else f" ± {half:.3f}"
    unchanged = row["share"] == 0 or math.isnan(change)
    return f"{row['mean']:.3f}{interval}" + ("" if unchanged else f" ({100 * change:+.1f} %)")


def _fitting(columns: Mapping[str, Sequence[str]], width: int) -> Iterator[list[str]]:
    """Groups of at least one column that are no wider than a width."""
    group: list[str] = []
    used = 0
    for heading, cells in columns.items():
        needed = _GAP + max(map(len, [heading, *cells]))
        if group and used + needed > width:
            yield group
            group, used = [], 0
        group.append(heading)
        used += needed
    if group:
        yield group
