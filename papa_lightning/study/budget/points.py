"""Scores at numbers of constant heads, on selection rows and held-out rows; each is measured once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from papa_lightning.calibration import AttentionConstants
from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.errors import StudyError
from papa_lightning.ranking import HeadRanking
from papa_lightning.study.artifacts import average_key, cell_result, features_of, save_cell, swapped
from papa_lightning.study.budget.settings import ENCODER, TASK, BudgetSettings
from papa_lightning.study.cells import Choice
from papa_lightning.study.intervals import Basis, Estimate, Sample, estimate, relative_estimate
from papa_lightning.study.resampling import Probes, bounds_of
from papa_lightning.study.results import CellResult
from papa_lightning.study.statistics import stored_predictions
from papa_lightning.study.store import StudyFolder, digest
from papa_lightning.study.training import train_probes
from papa_lightning.study.verdicts import Verdict, examples_needed, verdict_of
from papa_lightning.study.workbench import Bench
from papa_lightning.tasks.metrics import chance_level
from papa_lightning.text import counted

#: Name of the evaluation set on which a choice is confirmed; the set for the choice is the first one, named "".
HELD_OUT = "held_out"
_REMEDIES = (
    "train the probe longer (probe.max_epochs), or with another probe.learning_rate, or take more training and "
    "validation rows"
)


def open_split_bench(settings: BudgetSettings) -> tuple[Bench, str]:
    """Load encoder and task, with selection and held-out rows as evaluation sets, and the origin of the latter."""
    bench = Bench(settings.study(), ENCODER, TASK)
    with bench.watch.part("loading"):
        validation, test = bench.evaluations[""], _labelled_test(bench.data)
    if test is not None:
        bench.evaluations = {"": validation, HELD_OUT: test}
        return bench, "the test split"
    selection, held_out = halves(validation, settings.split_seed)
    bench.evaluations = {"": selection, HELD_OUT: held_out}
    return bench, f"half of the validation split, drawn with seed {settings.split_seed}"


def halves(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Two random halves of rows, each in the order of the rows; the second is larger by one if the number is odd."""
    if len(rows) < 2:
        raise StudyError(
            f"task has {len(rows)} validation rows, but a choice of heads and its confirmation need rows of their own: "
            "pass at least two (max_eval_examples?), or a labelled test split."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    middle = len(rows) // 2
    return rows.select(sorted(order[:middle])), rows.select(sorted(order[middle:]))


def _labelled_test(data: TaskDataModule) -> Dataset | None:
    """The rows of a labelled test split, if there is one; without labels a data module tests on validation rows."""
    found = [rows for rows in map(data.load_split, data.role_splits["test"]) if rows is not None]
    if not found or not all(map(data.is_labelled, found)):
        return None
    data.setup("test")
    loaders = data.test_dataloader()
    rows: Dataset = (loaders[0] if isinstance(loaders, list) else loaders).dataset
    return rows


@dataclass(frozen=True)
class Drop:
    """Relative drop ``(score0 - score) / |score0|`` of the mean scores.

    Args:
        seeds: The drop of each seed.
        mean: The drop of the means over the seeds.
        low: Lower end of its 95 % interval, NaN without one.
        high: Upper end.
        basis: What the interval takes into account.
        verdict: Whether the drop is "within" the limit, "beyond" it or "open"; "" without an interval.
        examples_needed: About how many examples would settle what is open; see
            :func:`~papa_lightning.study.verdicts.examples_needed`.
    """

    seeds: tuple[float, ...]
    mean: float
    low: float
    high: float
    basis: Basis
    verdict: Verdict
    examples_needed: float

    @classmethod
    def of(cls, scores: Sample, dynamic: Sample, limit: float, bounds: tuple[float, float]) -> Drop:
        """The drop between the scores of the same probes with some and with no constant heads."""
        seeds = (dynamic.seeds - scores.seeds) / np.abs(dynamic.seeds)
        size = abs(float(dynamic.seeds.mean()))
        ends = ((bounds[0] - size) / size, (bounds[1] - size) / size)
        found = relative_estimate(scores.minus(dynamic), dynamic, ends)
        verdict = verdict_of(found, limit)
        needed = examples_needed(found, limit) if verdict == "open" else math.nan
        return cls(tuple(seeds.tolist()), -found.value, -found.high, -found.low, found.basis, verdict, needed)


@dataclass(frozen=True)
class Baseline:
    """The score with all heads dynamic, that of the best constant answer (NaN if unknown), and their difference."""

    score: Estimate
    chance: float
    above: Estimate

    @property
    def beats_chance(self) -> bool:
        """Whether the interval of the difference lies above 0, or without one the difference; True if unknown."""
        low = self.above.value if math.isnan(self.above.low) else self.above.low
        return math.isnan(low) or low > 0

    def __str__(self) -> str:
        """Score, chance and difference with their 95 % intervals."""
        if math.isnan(self.chance):
            return f"{_with_ends(self.score)} with all heads dynamic, chance unknown"
        return (
            f"{_with_ends(self.score)} with all heads dynamic, chance {self.chance:.3f}, difference "
            f"{_with_ends(self.above)}"
        )


def _with_ends(one: Estimate) -> str:
    return f"{one.value:.3f}" + ("" if math.isnan(one.low) else f" [{one.low:.3f}, {one.high:.3f}]")


@dataclass(frozen=True)
class Point:
    """Results by probe seed with the first `heads` of the ranking constant."""

    heads: int
    results: tuple[CellResult, ...]
    metric: str

    def scores(self, held_out: bool) -> list[float]:
        """The task's score by seed, on the held-out rows or on the selection rows."""
        name = f"{self.metric}/{HELD_OUT}" if held_out else self.metric
        return [result.scores[name] for result in self.results]


class Points:
    """Measurements by the number of constant heads, kept in files and never repeated."""

    def __init__(
        self,
        folder: StudyFolder,
        bench: Bench,
        constants: AttentionConstants,
        ranking: HeadRanking,
        limit: float,
    ) -> None:
        self._folder, self._bench, self._constants, self._ranking = folder, bench, constants, ranking
        self._limit = limit
        self._resampled: tuple[int, Probes] | None = None
        self.measured: dict[int, Point] = {}

    def at(self, heads: int) -> Point:
        """The scores with a number of constant heads, measured or looked up."""
        if heads not in self.measured:
            self.measured[heads] = self._measure(heads)
        return self.measured[heads]

    def loss(self, heads: int) -> float:
        """The mean relative loss on the selection rows, without an interval."""
        before, after = (float(np.mean(self.at(number).scores(held_out=False))) for number in (0, heads))
        return (before - after) / abs(before)

    def drop(self, heads: int, held_out: bool = False) -> Drop:
        """The drop with a number of constant heads, on the selection rows or on the held-out rows."""
        metric, limit = self._metric(held_out), self._limit
        dynamic, scores = (self._sample(number, held_out) for number in (0, heads))
        return Drop.of(scores, dynamic, limit, bounds_of(metric))

    def baseline(self, held_out: bool) -> Baseline:
        """The score with all heads dynamic beside chance, on the selection rows or on the held-out rows.

        Raises:
            StudyError: When it is 0 or no number for a seed, or does not beat chance: a loss of it means nothing.
        """
        rows, metric = "held-out" if held_out else "selection", self.at(0).metric
        for seed, score in zip(self._bench.settings.seeds, self.at(0).scores(held_out), strict=True):
            if score == 0 or not math.isfinite(score):
                raise StudyError(
                    f"{metric} of seed {seed} is {score} on the {rows} data with all heads dynamic, so that there is "
                    f"no relative loss of it: {_REMEDIES}."
                )
        sample = self._sample(0, held_out)
        labels = self._bench.evaluations[HELD_OUT if held_out else ""][:]["labels"]
        name = self._metric(held_out)
        chance = self._probes.chance(name, chance_level(metric, torch.as_tensor(labels)), len(sample.seeds))
        above = Estimate(math.nan) if chance is None else estimate(sample.minus(chance))
        level = math.nan if chance is None else float(chance.seeds[0])
        found = Baseline(estimate(sample, bounds_of(metric)), level, above)
        if not found.beats_chance:
            raise StudyError(
                f"{metric} on the {rows} data does not beat chance: {found} ({counted(len(labels), 'example')}, "
                f"{counted(len(sample.seeds), 'seed')}). A loss of it would mean nothing: {_REMEDIES}."
            )
        return found

    def _metric(self, held_out: bool) -> str:
        metric = self.at(0).metric
        return f"{metric}/{HELD_OUT}" if held_out else metric

    def _sample(self, heads: int, held_out: bool) -> Sample:
        """The score of each seed with a number of constant heads."""
        rows = self._rows(heads)
        return self._probes.sample(rows[rows["metric"] == self._metric(held_out)])

    @property
    def _probes(self) -> Probes:
        """All probes that were measured, resampled together."""
        if self._resampled is None or self._resampled[0] != len(self.measured):
            rows = pd.concat([self._rows(heads) for heads in sorted(self.measured)])
            self._resampled = len(self.measured), Probes(rows, partial(stored_predictions, self._folder))
        return self._resampled[1]

    def _rows(self, heads: int) -> pd.DataFrame:
        """The scores with a number of constant heads as rows of a table of results; seeds by their place."""
        return pd.DataFrame(
            [
                {"hash": result.hash, "seed": place, "metric": metric, "score": score}
                for place, result in enumerate(self.at(heads).results)
                for metric, score in result.scores.items()
            ]
        )

    def _measure(self, heads: int) -> Point:
        bench, settings = self._bench, self._bench.settings
        chosen = sorted(self._ranking.first(heads))
        seen = digest([bench.identity, average_key(bench, "average"), chosen, settings.features.storage == "float16"])
        keys = {seed: digest([seen, asdict(settings.probe), settings.pooling, seed]) for seed in settings.seeds}
        missing = [seed for seed, key in keys.items() if not self._folder.cell(key).exists()]
        if missing:
            total, start = len(self._ranking.heads), time.perf_counter()
            choice = Choice(heads / total, self._ranking.criterion, "average")
            with (
                swapped(bench, self._constants, chosen),
                features_of(self._folder, bench, seen, bench.evaluations) as (train, evaluations),
            ):
                shared = (time.perf_counter() - start) / len(missing)
                with bench.watch.part("probes"):
                    trained = train_probes(bench.task, train, evaluations, missing, settings.probe)
                for probe in trained:
                    key = keys[probe.seed]
                    result = cell_result(bench, choice, (heads, total), probe, shared + probe.seconds, key)
                    save_cell(self._folder, result, probe)
        results = tuple(self._folder.result(key, CellResult.load) for key in keys.values())
        return Point(heads, results, bench.data.metrics[0])


def largest_within(fits: Callable[[int], bool], total: int) -> int:
    """The largest number up to `total` that fits, by bisection; 0 if none. The next larger one tried does not fit."""
    low, high = 0, total + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
