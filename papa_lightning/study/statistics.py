"""Means, intervals and rank correlations over the results of a study."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from papa_lightning.errors import PapaError
from papa_lightning.study.results import baseline_scores

#: Characters of a line.
WIDTH = 100
_GAP = "  "


def format_summary(summary: pd.DataFrame) -> str:
    """The tasks' own scores as text: a table for each encoder, task and kind of constants.

    Rows are shares of constant heads, columns are criteria, and a cell reads ``0.812 ± 0.006 (-3.7 %)``: the mean, half
    of its 95 % interval, and the relative change against share 0. What is not known is left out of a cell; "-" stands
    for a cell without a score. Criteria that do not fit into 100 columns follow below.

    Args:
        summary: What :func:`~papa_lightning.study.statistics.summarize` made.

    Returns:
        Lines of up to 100 characters.

    Example:
        >>> from papa_lightning.study.results import CellResult, results_table
        >>> from papa_lightning.study.statistics import summarize
        >>> def cell(share: float, seed: int, score: float) -> CellResult:
        ...     scores, heads = {"f1": score}, int(4 * share)
        ...     return CellResult("bert", "sst2", "taylor", share, heads, 4, seed, "average", "f1", scores, 1.0, {}, "")
        >>> cells = [cell(0, 0, 0.80), cell(0, 1, 0.82), cell(1, 0, 0.78), cell(1, 1, 0.79)]
        >>> print(format_summary(summarize(results_table(cells))))
        bert on sst2: f1 (95 % interval and change against share 0; 2 probe seeds; constants: average)
         share  taylor
           0 %  0.810 ± 0.127
         100 %  0.785 ± 0.064 (-3.1 %)
    """
    own = summary[summary["is_score"].astype(bool)]
    blocks = [
        "\n".join([*_heading(rows), *_body(rows)])
        for _, rows in own.groupby(["encoder", "task", "constants", "metric"], sort=False)
    ]
    return "\n\n".join(blocks) if blocks else "no scores"


def _heading(rows: pd.DataFrame) -> list[str]:
    first = rows.iloc[0]
    seeds = _range(rows["n"], "probe seed")
    about = f"95 % interval and change against share 0; {seeds}; constants: {first['constants']}"
    return textwrap.wrap(
        f"{first['encoder']} on {first['task']}: {first['metric']} ({about})", WIDTH, subsequent_indent=_GAP
    )


def _range(numbers: pd.Series, noun: str) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    span = str(low) if low == high else f"{low} to {high}"
    return f"{span} {noun}" if high == 1 else f"{span} {noun}s"


def _body(rows: pd.DataFrame) -> list[str]:
    shares = sorted(set(rows["share"]))
    names = ["share", *(_percent(share) for share in shares)]
    first = [name.rjust(max(map(len, names)) + 1) for name in names]
    columns = []
    for criterion in dict.fromkeys(rows["criterion"]):
        known = {row["share"]: _cell(row) for _, row in rows[rows["criterion"] == criterion].iterrows()}
        columns.append(_column([_title(criterion), *(known.get(share, "-") for share in shares)]))
    lines = []
    for chosen in _fitting(columns, WIDTH - len(first[0])):
        lines += [_GAP.join(parts).rstrip() for parts in zip(first, *chosen, strict=True)]
    return lines


def _cell(row: pd.Series) -> str:
    if math.isnan(row["mean"]):
        return "not a number"
    half, change = (row["high"] - row["low"]) / 2, row["relative"]
    interval = "" if math.isnan(half) else f" ± {half:.3f}"
    unchanged = row["share"] == 0 or math.isnan(change)
    return f"{row['mean']:.3f}{interval}" + ("" if unchanged else f" ({100 * change:+.1f} %)")


def _title(criterion: str) -> str:
    return criterion if len(criterion) <= 40 else f"{criterion[:37]}..."


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _column(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def _fitting(columns: Sequence[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Groups of columns that are no wider than a line, each of at least one."""
    group: list[list[str]] = []
    used = 0
    for column in columns:
        needed = len(_GAP) + len(column[0])
        if group and used + needed > width:
            yield group
            group, used = [], 0
        group.append(column)
        used += needed
    if group:
        yield group


__all__ = ["RankCorrelation", "format_summary", "mean_interval", "rank_correlation", "summarize"]

#: Of all intervals.
CONFIDENCE = 0.95
#: What a row of the summary is about; the metric stands beside them.
_GROUP = ["encoder", "task", "criterion", "constants", "share", "metric"]
_ESTIMATES = {"score": ("mean", "low", "high")} | {
    name: (name, f"{name}_low", f"{name}_high") for name in ("difference", "relative")
}


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the probe seeds with 95 % intervals, of the scores and of their changes against share 0.

        mean +- t(0.975, n - 1) * s / sqrt(n)

    (Student's t; n probe seeds, s the standard deviation over them.) The changes are paired: taken seed by seed, and
    then averaged, so that what a seed does to the scores of both shares cancels. "relative" is the mean of the
    relative changes of the seeds, and not the relative change of the means: each seed gives one plain number, for
    which the same interval holds, while a ratio of means would need an approximation of its own.

    Random rankings ("random:0", "random:1", ...) are one row, "random". Ranking and probe seed are crossed: probes of
    one seed have the same start, those of one ranking the same heads, so that their pairs are not independent, and
    counting each pair would make the interval too narrow. So each probe seed's mean over the rankings is one value
    of n. The interval then says, as that of every other row, how the score moves when the probes are trained anew with
    the same rankings; how it moves with the ranking is what "ranking_deviation" says.

    Args:
        table: What :func:`~papa_lightning.study.results.results_table` made.

    Returns:
        A row for each encoder, task, criterion, kind of constants, share and metric, in the order of the table, with

        - is_score, constant_heads, total_heads: as in the table;
        - n: number of probe seeds; rankings: number of ranking seeds, 1 for what is not random. In a study that was
          interrupted a probe seed may have fewer rankings than others; its mean is over those that it has;
        - mean, low, high: of the score;
        - difference, difference_low, difference_high: of score minus score at share 0;
        - relative, relative_low, relative_high: of the relative change;
        - ranking_deviation: standard deviation over the rankings of their mean scores, NaN for a single one.

        One seed has a mean and NaN as interval. A score that is NaN, or a seed without a score at share 0, makes
        what depends on it NaN: nothing is left out unseen.

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
    """A mean and its 95 % interval by Student's t, ``mean +- t(0.975, n - 1) * s / sqrt(n)``.

    Args:
        values: (n,).

    Returns:
        Mean, lower and upper end; the ends are NaN for a single value, and all are for values that are NaN, or none.

    Example:
        >>> [round(number, 3) for number in mean_interval([0.8, 0.82, 0.81])]
        [0.81, 0.785, 0.835]
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        return (math.nan,) * 3
    mean = float(array.mean())
    if len(array) == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation with its interval.

    Args:
        rho: -1 to 1; NaN where it is not defined.
        low: Lower end of the 95 % interval.
        high: Upper end.
        encoders: Number of encoders.
        tasks: Number of tasks.
    """

    rho: float
    low: float
    high: float
    encoders: int
    tasks: int

    def __str__(self) -> str:
        """One line, with what it was measured on."""
        on = f"{_counted(self.encoders, 'encoder')}, {_counted(self.tasks, 'task')}"
        if math.isnan(self.rho):
            return f"rho not defined ({on})"
        interval = "no interval" if math.isnan(self.low) else f"95 % interval {self.low:.2f} to {self.high:.2f}"
        return f"rho {self.rho:.2f} ({interval}; {on})"


def rank_correlation(
    baseline: ArrayLike, drop: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> RankCorrelation:
    """Spearman's rank correlation of baseline scores and drops across encoders: do better models lose more?

    Encoders are ranked within each task, the ranks of each task are centred, and their correlation is taken over all
    tasks together:

        rho = sum r s / sqrt(sum r^2 * sum s^2),    r, s: centred ranks of baseline and drop

    Scores of different tasks cannot be compared (one task's 0.5 may be another's 0.9), ranks within a task can; and
    few encoders give a single task little to say. For one task this is Spearman's rho.

    The interval is the percentile bootstrap over encoders, each with all its tasks, because the results of an encoder
    on several tasks are not independent. Resamples in which all ranks are tied have no rho and are left out. With
    few encoders the interval is rough; below 3 there is none, nor a rho.

    A drop that is measured against the same noisy baseline is correlated with it by the noise alone: a lucky baseline
    score is followed by a larger drop. Differences between encoders should be large beside the intervals of
    :func:`summarize` before much is made of rho.

    Args:
        baseline: Scores at share 0, (encoders,) for one task or (tasks, encoders); NaN where there is none.
        drop: What is lost of them, in the same shape.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        PapaError: When the shapes differ or are others, or resamples is not at least 1.

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
    drawn = np.random.default_rng(seed).integers(x.shape[1], size=(resamples, x.shape[1]))
    rhos = _pooled_rho(np.moveaxis(x[:, drawn], 0, 1), np.moveaxis(y[:, drawn], 0, 1))
    rhos = rhos[np.isfinite(rhos)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(rhos, [tail, 100 - tail]).tolist() if len(rhos) else (math.nan, math.nan)
    return RankCorrelation(float(_pooled_rho(x, y)), low, high, encoders, tasks)


def _pooled_rho(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (..., tasks, encoders) one correlation each, (...); NaN values are left out."""
    r, s = _centred_ranks(x), _centred_ranks(y)
    squares = (r**2).sum(axis=(-2, -1)) * (s**2).sum(axis=(-2, -1))
    rho = np.full(squares.shape, np.nan)
    np.divide((r * s).sum(axis=(-2, -1)), np.sqrt(squares), out=rho, where=squares > 0)
    return rho.clip(-1.0, 1.0)


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks along the last axis minus their mean, ties share theirs; 0 for NaN."""
    ranks = stats.rankdata(values, axis=-1, nan_policy="omit")
    known = ~np.isnan(ranks)
    mean = np.where(known, ranks, 0.0).sum(axis=-1, keepdims=True) / known.sum(axis=-1, keepdims=True).clip(1)
    return np.where(known, ranks - mean, 0.0)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
