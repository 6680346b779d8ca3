"""Scores at numbers of constant heads, on selection rows and held-out rows; each is measured once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor

from papa_lightning.calibration import AttentionConstants
from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.embeddings import Judgements
from papa_lightning.errors import StudyError
from papa_lightning.ranking import HeadRanking
from papa_lightning.study.artifacts import average_key, cell_result, features_of, save_cell, swapped
from papa_lightning.study.budget.settings import ENCODER, TASK, BudgetSettings
from papa_lightning.study.cells import Choice
from papa_lightning.study.intervals import Basis, Estimate, Sample, Unit, estimate, relative_estimate
from papa_lightning.study.judged import check_pair, judge, scores_of
from papa_lightning.study.predictions import Evaluation
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
_FEWEST_UNITS = 4
_REMEDIES = (
    "train the probe longer (probe.max_epochs), or with another probe.learning_rate, or take more training and "
    "validation rows"
)


def open_split_bench(settings: BudgetSettings) -> tuple[Bench, str]:
    """Load encoder and task, with selection and held-out rows as evaluation sets, and the origin of the latter."""
    bench = Bench(settings.study(), ENCODER, TASK)
    check_pair(bench)
    drawn = f"half of the validation split, drawn with seed {settings.split_seed}"
    if bench.judgements is not None:
        bench.units = dict(zip(("", HELD_OUT), _halves_of(bench.judgements, settings.split_seed), strict=True))
        return bench, drawn
    with bench.watch.part("loading"):
        validation, test = bench.evaluations[""], _labelled_test(bench.data)
    if test is not None:
        bench.evaluations = {"": validation, HELD_OUT: test}
        return bench, "the test split"
    selection, held_out = halves(validation, settings.split_seed)
    bench.evaluations = {"": selection, HELD_OUT: held_out}
    return bench, drawn


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


def _halves_of(judgements: Judgements, seed: int) -> tuple[Tensor, Tensor]:
    """The numbers of two random halves of pairs or queries, each in order."""
    number = len(judgements)
    if number < _FEWEST_UNITS:
        raise StudyError(
            f"task has {number} validation {judgements.kind}, but a choice of heads and its confirmation need some of "
            f"their own: pass at least {_FEWEST_UNITS} (max_eval_examples?)."
        )
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    return order[: number // 2].sort().values, order[number // 2 :].sort().values


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
        judged = self._bench.judgements
        remedies = _REMEDIES if judged is None else f"take another encoder, or more {judged.kind}"
        for seed, score in zip(self._bench.seeds, self.at(0).scores(held_out), strict=True):
            if score == 0 or not math.isfinite(score):
                raise StudyError(
                    f"{metric} of seed {seed} is {score} on the {rows} data with all heads dynamic, so that there is "
                    f"no relative loss of it: {remedies}."
                )
        sample, name = self._sample(0, held_out), self._metric(held_out)
        chance = self._probes.chance(name, self._chance_level(held_out), len(sample.seeds))
        above = Estimate(math.nan) if chance is None else estimate(sample.minus(chance))
        level = math.nan if chance is None else float(chance.seeds[0])
        found = Baseline(estimate(sample, bounds_of(metric)), level, above)
        if not found.beats_chance:
            size = Size.of(self._bench, held_out)
            raise StudyError(
                f"{metric} on the {rows} data does not beat chance: {found} ({size}). A loss of it would mean nothing: "
                f"{remedies}."
            )
        return found

    def _chance_level(self, held_out: bool) -> float | None:
        """The best score of a constant answer; None for embeddings, whose answers know it."""
        if self._bench.judgements is not None:
            return None
        labels = self._bench.evaluations[HELD_OUT if held_out else ""][:]["labels"]
        return chance_level(self.at(0).metric, torch.as_tensor(labels), self._bench.data.num_labels)

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
        keys = {seed: digest([seen, asdict(settings.probe), settings.pooling, seed]) for seed in bench.seeds}
        missing = [seed for seed, key in keys.items() if not self._folder.cell(key).exists()]
        if missing:
            with swapped(bench, self._constants, chosen):
                measure = self._train if bench.judgements is None else self._judge
                measure(heads, seen, {seed: keys[seed] for seed in missing})
        results = tuple(self._folder.result(key, CellResult.load) for key in keys.values())
        return Point(heads, results, bench.metrics[0])

    def _train(self, heads: int, seen: str, keys: Mapping[int, str]) -> None:
        """Train the probes of some seeds, and write the results under their keys."""
        bench, start = self._bench, time.perf_counter()
        with features_of(self._folder, bench, seen, bench.evaluations) as (train, evaluations):
            shared = (time.perf_counter() - start) / len(keys)
            with bench.watch.part("probes"):
                trained = train_probes(bench.probed, train, evaluations, list(keys), bench.settings.probe)
        for one in trained:
            self._save(heads, one.seed, one.scores, shared + one.seconds, keys[one.seed], one.predictions)

    def _judge(self, heads: int, seen: str, keys: Mapping[int, str]) -> None:
        """Judge the embeddings, and write the result under its key."""
        start, found = time.perf_counter(), judge(self._bench)
        for seed, key in keys.items():
            self._save(heads, seed, scores_of(found), time.perf_counter() - start, key, found)

    def _save(
        self,
        heads: int,
        seed: int,
        scores: Mapping[str, float],
        seconds: float,
        key: str,
        predictions: Mapping[str, Evaluation],
    ) -> None:
        total = len(self._ranking.heads)
        choice = Choice(heads / total, self._ranking.criterion, "average")
        result = cell_result(self._bench, choice, (heads, total), seed, scores, seconds, key)
        save_cell(self._folder, result, predictions)


@dataclass(frozen=True)
class Size:
    """Number of selection or held-out examples of a probe, or pairs or queries, which have no seeds (0)."""

    number: int
    unit: Unit
    seeds: int

    @classmethod
    def of(cls, bench: Bench, held_out: bool) -> Size:
        """The size of the selection or held-out rows."""
        name = HELD_OUT if held_out else ""
        if bench.judgements is None or bench.units is None:
            return cls(len(bench.evaluations[name]), "examples", len(bench.seeds))
        return cls(len(bench.units[name]), bench.judgements.kind, 0)

    def __str__(self) -> str:
        """The size in words: "250 examples, 3 seeds", "750 pairs"."""
        return f"{self.number} {self.unit}" + (f", {counted(self.seeds, 'seed')}" if self.seeds else "")


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
