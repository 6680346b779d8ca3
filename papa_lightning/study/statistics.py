"""Means, intervals and verdicts of the results of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from papa_lightning.checks import refuse
from papa_lightning.study.intervals import FEWEST_SEEDS, Estimate, estimate, relative_estimate, weighted
from papa_lightning.study.predictions import load_predictions
from papa_lightning.study.resampling import Probes, Sets, bounds_of, is_metric
from papa_lightning.study.results import load_table
from papa_lightning.study.settings import RECOVERED, read_share
from papa_lightning.study.store import StudyFolder
from papa_lightning.study.verdicts import examples_needed, verdict_of
from papa_lightning.text import counted

#: Largest relative loss of score that counts as none, unless the settings say otherwise.
MARGIN = 0.03
#: Columns that identify a row of the summary.
_GROUP = ["encoder", "task", "criterion", "constants", "share", "metric"]
_ESTIMATES = {"score": ("mean", "low", "high")} | {
    name: (name, f"{name}_low", f"{name}_high") for name in ("difference", "relative", "above_chance", "against_random")
}
#: Columns of the summary behind those of :data:`_GROUP`.
_COLUMNS = [
    *("is_score", "constant_heads", "total_heads", "n", "rankings", "examples", "unit", "basis"),
    *(name for key in ("score", "difference", "relative") for name in _ESTIMATES[key]),
    *("ranking_deviation", "chance"),
    *_ESTIMATES["above_chance"],
    "beats_chance",
    *_ESTIMATES["against_random"],
    *("verdict", "examples_needed", "margin"),
]

Place: TypeAlias = tuple[str, float, str]
"""Criterion, share of constant heads, and kind of constants."""


class Evidence:
    """The results of a study with the predictions behind them: means, paired differences, and what they settle.

    Args:
        table: Result of :func:`~papa_lightning.study.results.results_table`.
        predictions: The predictions of a probe by its hash, None where there are none; None for all.
        margin: Largest relative loss of score that counts as none.
        chances: The best score of a constant answer by encoder and task, where there are no predictions.

    Attributes:
        table: The table of results.
        margin: The margin.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        predictions: Callable[[str], Sets | None] | None = None,
        margin: float = MARGIN,
        chances: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        self.table, self.margin, self._chances = table, margin, chances or {}
        self.predictions: Callable[[str], Sets | None] = predictions or (lambda key: None)
        self._by_pair = dict(iter(table.groupby(["encoder", "task"], sort=False)))
        self._known: dict[tuple[str, str], Probes] = {}

    @classmethod
    def read(cls, folder: str | Path, margin: str | float | None = None) -> Evidence:
        """The results in the folder of a study; the margin is that of its settings unless another one is given.

        Raises:
            PapaError: When the folder holds no study, or a file in it is damaged.
        """
        store = StudyFolder(folder)
        noted = store.read()
        given = noted["settings"].get("margin", MARGIN) if margin is None else margin
        pairs = noted["about"].get("pairs")
        chances = {
            (str(one.get("encoder")), str(one.get("task"))): float(one["chance"])
            for one in (pairs if isinstance(pairs, list) else [])
            if isinstance(one, Mapping) and isinstance(one.get("chance"), (int, float))
        }
        found = partial(stored_predictions, store)
        return cls(load_table(store.path), found, read_share("margin", given), chances)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row for each encoder, task, criterion, kind of constants, share and metric; see :func:`summarize`."""
        rows = [
            dict(zip(_GROUP, key, strict=True)) | self._row(rows)
            for key, rows in self.table.groupby(_GROUP, sort=False)
        ]
        return pd.DataFrame(rows, columns=[*_GROUP, *_COLUMNS])

    @property
    def notes(self) -> list[str]:
        """What limits the intervals, in sentences; empty if nothing does."""
        own = self.table[self.table["is_score"]]
        lacking = {key for pair in self._by_pair for key in self._probes(pair).lacking}
        seeds = [
            rows["seed"].nunique()
            for pair, rows in own.groupby(["encoder", "task"])
            if self._probes(pair).unit == "examples"
        ]
        notes = []
        if lacking:
            notes.append(
                f"{counted(len(lacking), 'probe')} of {self.table['hash'].nunique()} have no predictions, as those of "
                "an older version: their intervals cover seeds only, from three on. To get them, delete the folder "
                "cells and run the study again."
            )
        if min(seeds, default=FEWEST_SEEDS) < FEWEST_SEEDS:
            notes.append(
                f"With fewer than {FEWEST_SEEDS} seeds the intervals cover the choice of the examples only, not that "
                "of the probe: add seeds."
            )
        return notes

    def compare(self, encoder: str, task: str, first: Place, second: Place, metric: str | None = None) -> Estimate:
        """The paired difference of two choices of heads in units of the metric, first minus second.

        Args:
            encoder: Name of the encoder.
            task: Name of the task.
            first: Criterion, share and kind of constants, such as ``("variance", 0.5, "average")``; "random" stands
                for all random orders together.
            second: Another one.
            metric: Name of the metric; None for the task's own score.

        Raises:
            PapaError: When one of them has no results.
        """
        rows = self._measured(encoder, task, metric)
        sides = [rows[_is(rows, place)] for place in (first, second)]
        for name, place, side in zip(("first", "second"), (first, second), sides, strict=True):
            if not len(side):
                refuse(name, place, f"a criterion, share and kind of constants with results of {encoder} on {task}")
        return self._difference((encoder, task), [sides])

    def area(
        self, encoder: str, task: str, first: str, second: str, constants: str = "average", metric: str | None = None
    ) -> Estimate:
        """The paired area between two curves over all shares, in units of the metric, first criterion minus second.

        The curves are straight between shares and meet where no head is constant and where all are, so that this is
        the mean difference of a share that is drawn evenly from 0 to 1. It takes the shares, the seeds, and the random
        orders that both curves have.

        Args:
            encoder: Name of the encoder.
            task: Name of the task.
            first: Name of a criterion; "random" stands for all random orders together.
            second: Another one.
            constants: Kind of constants.
            metric: Name of the metric; None for the task's own score.

        Raises:
            PapaError: When one of them has no results at a share between 0 and 1.
        """
        rows = self._measured(encoder, task, metric)
        rows = rows[(rows["constants"] == constants) & rows["share"].between(0, 1, inclusive="neither")]
        curves = [dict(iter(rows[rows["criterion"] == one].groupby("share"))) for one in (first, second)]
        for name, criterion, curve in zip(("first", "second"), (first, second), curves, strict=True):
            if not curve:
                refuse(name, criterion, f"a criterion with results of {encoder} on {task} between share 0 and 1")
        shares = sorted(curves[0].keys() & curves[1].keys())
        ends = [0.0, *shares, 1.0]
        weights = [(after - before) / 2 for before, after in zip(ends, ends[2:], strict=False)]
        sides = [[_with_common(curve, shares, share) for curve in curves] for share in shares]
        return self._difference((encoder, task), sides, weights)

    def largest_within(self, encoder: str, task: str, criterion: str, constants: str = "average") -> pd.Series | None:
        """The row of the largest share that costs no more than the margin, as do all smaller ones; None if none."""
        rows, found = self._curve(encoder, task, criterion, constants), None
        for _, row in rows.iterrows():
            if row["verdict"] != "within":
                break
            found = row
        return found

    def next_after(
        self, row: pd.Series | None, encoder: str, task: str, criterion: str, constants: str = "average"
    ) -> pd.Series | None:
        """The row of the next larger share that was measured, after none for None; None if there is none."""
        rows = self._curve(encoder, task, criterion, constants)
        rows = rows if row is None else rows[rows["share"] > row["share"]]
        return rows.iloc[0] if len(rows) else None

    def _curve(self, encoder: str, task: str, criterion: str, constants: str) -> pd.DataFrame:
        """The rows of a task's own score by a criterion with a kind of constants, by share above 0."""
        rows = self.summary
        names = {"encoder": encoder, "task": task, "criterion": criterion, "constants": constants}
        for name, value in names.items():
            rows = rows[rows[name] == value]
        return rows[rows["is_score"].astype(bool) & (rows["share"] > 0)].sort_values("share")

    def _measured(self, encoder: str, task: str, metric: str | None) -> pd.DataFrame:
        """The rows of an encoder on a task, of a metric or for None of the task's own score."""
        rows = self._by_pair.get((encoder, task), self.table.iloc[:0])
        return rows[rows["is_score"] if metric is None else rows["metric"] == metric]

    def _probes(self, pair: tuple[str, str]) -> Probes:
        if pair not in self._known:
            self._known[pair] = Probes(self._by_pair[pair], self.predictions)
        return self._known[pair]

    def _row(self, rows: pd.DataFrame) -> dict[str, Any]:
        """The columns of the summary for the rows of one group."""
        first = rows.iloc[0]
        pair, metric, share = (first["encoder"], first["task"]), str(first["metric"]), float(first["share"])
        rankings = rows["ranking_seed"].nunique()
        found: dict[str, Any] = {name: first[name] for name in ("is_score", "constant_heads", "total_heads")}
        score = estimate(self._probes(pair).sample(rows), bounds_of(metric))
        found |= {"n": rows["seed"].nunique(), "rankings": max(rankings, 1), "margin": self.margin}
        found |= {"examples": score.examples, "unit": self._probes(pair).unit, "basis": score.basis}
        found["ranking_deviation"] = math.nan
        if rankings > 1:
            of_rankings = rows.groupby("ranking_seed")["score"].mean(skipna=False).to_numpy(float)
            found["ranking_deviation"] = float(of_rankings.std(ddof=1))
        difference, relative, base = self._changes(pair, rows)
        above, chance = self._above_chance(pair, rows)
        below = self._above_chance(pair, base)[0] if share > 0 else above
        no_baseline = below.low <= 0  # False where it is not known
        relative = Estimate(math.nan) if no_baseline else relative
        random = Estimate(math.nan)
        if first["criterion"] != "random" and 0 < share < 1:
            random = self._against_random(pair, rows)
        estimates = (score, difference, relative, above, random)
        for names, one in zip(_ESTIMATES.values(), estimates, strict=True):
            found |= dict(zip(names, (one.value, one.low, one.high), strict=True))
        verdict = ""
        if share > 0 and is_metric(metric):
            verdict = "no baseline" if no_baseline else verdict_of(relative, self.margin)
        needed = examples_needed(relative, self.margin) if verdict == "open" else math.nan
        return found | {"chance": chance, "beats_chance": above.low > 0, "verdict": verdict, "examples_needed": needed}

    def _changes(self, pair: tuple[str, str], rows: pd.DataFrame) -> tuple[Estimate, Estimate, pd.DataFrame]:
        """Difference and relative change against share 0 of the same seeds, and its rows."""
        every = self._by_pair[pair]
        base = every[(every["share"] == 0) & (every["metric"] == rows["metric"].iloc[0])].drop_duplicates("seed")
        base = base[base["seed"].isin(rows["seed"])]
        if len(base) < rows["seed"].nunique():
            return Estimate(math.nan), Estimate(math.nan), base
        probes = self._probes(pair)
        dynamic = probes.sample(base)
        change, mean = probes.sample(rows).minus(dynamic), float(dynamic.seeds.mean())
        low, high = (bound - mean for bound in bounds_of(str(rows["metric"].iloc[0])))
        size = abs(mean) or 1.0
        relative = relative_estimate(change, dynamic, (low / size, high / size))
        return estimate(change, (low, high)), relative, base

    def _above_chance(self, pair: tuple[str, str], rows: pd.DataFrame) -> tuple[Estimate, float]:
        """Difference to the best constant answer, and the score of that; NaN where it is not known."""
        if not len(rows):
            return Estimate(math.nan), math.nan
        probes, sample = self._probes(pair), self._probes(pair).sample(rows)
        level = self._chances.get(pair) if rows["is_score"].iloc[0] else None
        chance = probes.chance(str(rows["metric"].iloc[0]), level, len(sample.seeds))
        if chance is None:
            return Estimate(math.nan), math.nan
        level = float(chance.seeds[0])
        low, high = (bound - level for bound in bounds_of(str(rows["metric"].iloc[0])))
        return estimate(sample.minus(chance), (low, high)), level

    def _against_random(self, pair: tuple[str, str], rows: pd.DataFrame) -> Estimate:
        """Difference to random orders of the heads, at the same share and with the same constants."""
        every = self._by_pair[pair]
        for name in ("metric", "share", "constants"):
            every = every[every[name] == rows[name].iloc[0]]
        return self._difference(pair, [(rows, every[every["criterion"] == "random"])])

    def _difference(
        self, pair: tuple[str, str], sides: Sequence[Sequence[pd.DataFrame]], weights: Sequence[float] = (1.0,)
    ) -> Estimate:
        """Weighted sum of differences of two choices of heads, over common seeds and the random orders of either."""
        found = [set(rows["seed"]) for both in sides for rows in both]
        seeds = set.intersection(*found) if found else set()
        if not seeds:
            return Estimate(math.nan)
        probes, kept = self._probes(pair), [[rows[rows["seed"].isin(seeds)] for rows in both] for both in sides]
        differences = [probes.sample(rows).minus(probes.sample(others)) for rows, others in kept]
        orders = [
            weighted([probes.sample(rows, "ranking_seed") for rows in side], weights)
            for side in zip(*kept, strict=True)
            if side[0]["ranking_seed"].nunique() > 1
        ]
        return estimate(weighted(differences, weights), also=orders)


def summarize(table: pd.DataFrame, folder: str | Path | None = None, margin: float = MARGIN) -> pd.DataFrame:
    """Means of all scores with 95 % intervals, their changes against share 0, and what these settle.

    Changes are paired: the same seeds and the same examples on both sides. Intervals cover new examples and, from three
    seeds on, new probes; without predictions they cover new probes only (Student's t), and below three seeds there are
    none. They are clipped to what a score can be. See :mod:`papa_lightning.study.intervals`.

    Random rankings ("random:0", "random:1", ...) are one row, "random". Each probe seed's mean over them is one value
    of n, since pairs of seed and ranking are not independent. In an interrupted study a probe seed's mean is over the
    rankings that it has.

    Args:
        table: Result of :func:`~papa_lightning.study.results.results_table`.
        folder: Folder of the study, which has the predictions; None takes none.
        margin: Largest relative loss of score that counts as none.

    Returns:
        A row for each encoder, task, criterion, kind of constants, share and metric, in the order of the table, with

        - is_score, constant_heads, total_heads: as in the table;
        - n: number of probe seeds; rankings: number of ranking seeds, 1 for a criterion that is not random;
        - examples: number of validation examples behind the interval, 0 without predictions; unit: what these are,
          "examples" of a probe, "pairs" or "queries" of an embedding; basis: what the interval covers;
        - mean, low, high: the score;
        - difference, difference_low, difference_high: score minus score at share 0;
        - relative, relative_low, relative_high: the mean difference divided by the size of the mean score at share 0,
          NaN where that does not beat chance;
        - ranking_deviation: standard deviation over the rankings of their mean scores, NaN for a single one;
        - chance: best score of a constant answer, for embeddings that of a random order; above_chance,
          above_chance_low, above_chance_high: score minus chance; beats_chance: whether that interval lies above 0;
        - against_random, against_random_low, against_random_high: score minus that of random orders at the same share;
        - verdict: "within" where the interval of the relative change lies above -margin, "beyond" where it lies below,
          "open" where it contains it, "no baseline" where the score at share 0 does not beat chance, else "";
        - examples_needed: about how many examples would settle what is open; infinite where more seeds are needed;
        - margin: the margin.

        A score that is NaN, or a seed without a score at share 0, makes everything that depends on it NaN: no value is
        left out silently.

    Example:
        >>> from papa_lightning.study.results import CellResult, results_table
        >>> def cell(share: float, seed: int, score: float) -> CellResult:
        ...     scores, heads = {"f1": score}, int(4 * share)
        ...     return CellResult("e", "t", "taylor", share, heads, 4, seed, "average", "f1", scores, 1.0, {}, "1f")
        >>> cells = [cell(0, 0, 0.8), cell(0, 1, 0.6), cell(1, 0, 0.6), cell(1, 1, 0.3)]
        >>> summarize(results_table(cells))[["share", "n", "mean", "difference", "relative"]].round(3)
           share  n  mean  difference  relative
        0    0.0  2  0.70        0.00     0.000
        1    1.0  2  0.45       -0.25    -0.357
    """
    found = None if folder is None else partial(stored_predictions, StudyFolder(folder))
    return Evidence(table, found, margin).summary


def with_recovery(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary with averaged attention, and those of trained encoders as criteria of their own."""
    average, trained = (summary[summary["constants"] == kind] for kind in ("average", RECOVERED))
    return pd.concat([average, trained.assign(criterion=trained["criterion"] + ", recovered")])


def stored_predictions(folder: StudyFolder, key: str) -> Sets | None:
    """The predictions of a probe in the folder of a study; None where an older version has kept none."""
    path = folder.predictions(key)
    return load_predictions(path) if path.is_file() else None


def _with_common(curve: Mapping[float, pd.DataFrame], shares: Sequence[float], share: float) -> pd.DataFrame:
    """The rows of a curve at a share, of the random orders that it has at all shares."""
    orders = set.intersection(*(set(curve[one]["ranking_seed"]) for one in shares))
    return curve[share][curve[share]["ranking_seed"].isin(orders)]


def _is(rows: pd.DataFrame, place: Place) -> pd.Series:
    """Whether rows are of a criterion, a share and a kind of constants."""
    criterion, share, constants = place
    return (rows["criterion"] == criterion) & (rows["share"] == share) & (rows["constants"] == constants)
