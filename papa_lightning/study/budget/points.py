"""Scores at numbers of constant heads, on selection rows and held-out rows; each is measured once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from datasets import Dataset

from papa_lightning.calibration import AttentionConstants
from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.errors import StudyError
from papa_lightning.ranking import HeadRanking
from papa_lightning.study.artifacts import average_key, cell_result, features_of, save_cell, swapped
from papa_lightning.study.budget.settings import ENCODER, TASK, BudgetSettings
from papa_lightning.study.cells import Choice
from papa_lightning.study.intervals import mean_interval
from papa_lightning.study.results import CellResult
from papa_lightning.study.store import StudyFolder, digest
from papa_lightning.study.training import train_probes
from papa_lightning.study.workbench import Bench

#: Name of the evaluation set on which a choice is confirmed; the set for the choice is the first one, named "".
HELD_OUT = "held_out"


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
    """Relative drop ``(score0 - score) / |score0|`` by seed; mean and 95 % interval over the seeds (NaN for one)."""

    seeds: tuple[float, ...]
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, scores: list[float], dynamic: list[float]) -> Drop:
        """The drop between the scores of the same seeds with some and with no constant heads."""
        seeds = tuple((before - after) / abs(before) for after, before in zip(scores, dynamic, strict=True))
        return cls(seeds, *mean_interval(seeds))


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

    def __init__(self, folder: StudyFolder, bench: Bench, constants: AttentionConstants, ranking: HeadRanking) -> None:
        self._folder, self._bench, self._constants, self._ranking = folder, bench, constants, ranking
        self.measured: dict[int, Point] = {}

    def at(self, heads: int) -> Point:
        """The scores with a number of constant heads, measured or looked up."""
        if heads not in self.measured:
            self.measured[heads] = self._measure(heads)
        return self.measured[heads]

    def drop(self, heads: int, held_out: bool = False) -> Drop:
        """The drop with a number of constant heads, on the selection rows or on the held-out rows."""
        dynamic = self.at(0).scores(held_out)
        for seed, score in zip(self._bench.settings.seeds, dynamic, strict=True):
            if score == 0 or not math.isfinite(score):
                rows = "held-out" if held_out else "selection"
                raise StudyError(
                    f"{self.at(0).metric} of seed {seed} is {score} on the {rows} data with all heads dynamic, so that "
                    "there is no relative loss of it: train the probe longer (probe.max_epochs, probe.learning_rate), "
                    "or take more data."
                )
        return Drop.of(self.at(heads).scores(held_out), dynamic)

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
