"""Scores at numbers of constant heads, each measured once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from papa_lightning.calibration import AttentionConstants
from papa_lightning.encoders import restore_attention, swap_attention
from papa_lightning.errors import StudyError
from papa_lightning.ranking import HeadRanking
from papa_lightning.runtime import versions
from papa_lightning.study.artifacts import average_key, features_of
from papa_lightning.study.budget.data import HELD_OUT
from papa_lightning.study.hashing import digest
from papa_lightning.study.results import CellResult
from papa_lightning.study.statistics import mean_interval
from papa_lightning.study.store import StudyFolder
from papa_lightning.study.training import TrainedProbe, train_probes
from papa_lightning.study.workbench import Bench


@dataclass(frozen=True)
class Drop:
    """How much of a score is lost against all heads dynamic, ``(score0 - score) / |score0|``, seed by seed.

    Args:
        seeds: The drop of each probe seed; below 0 where the score rose.
        mean: Over the seeds.
        low: Lower end of the 95 % interval over the seeds; NaN for a single seed.
        high: Upper end.
    """

    seeds: tuple[float, ...]
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, scores: list[float], dynamic: list[float]) -> Drop:
        """From the scores of the same seeds with some and with no constant heads.

        Example:
            >>> Drop.of([0.375, 0.9], [0.5, 0.9]).seeds
            (0.25, 0.0)
        """
        seeds = tuple((before - after) / abs(before) for after, before in zip(scores, dynamic, strict=True))
        return cls(seeds, *mean_interval(seeds))


@dataclass(frozen=True)
class Point:
    """The scores with a number of constant heads.

    Args:
        heads: How many, the first ones of the ranking.
        results: One a probe seed, in the order of the seeds.
        metric: Name of the task's score.
    """

    heads: int
    results: tuple[CellResult, ...]
    metric: str

    def scores(self, held_out: bool) -> list[float]:
        """The task's score by seed, on the held-out rows or on those by which heads are chosen."""
        name = f"{self.metric}/{HELD_OUT}" if held_out else self.metric
        return [result.scores[name] for result in self.results]


class Points:
    """Trains probes at numbers of constant heads. What was measured is kept in files, and never measured again.

    Args:
        folder: Where the files are.
        bench: Encoder and task, with the held-out rows as second evaluation set.
        constants: The average of the encoder on the task.
        ranking: The order in which heads become constant.

    Attributes:
        measured: What was measured so far, by the number of heads.
    """

    def __init__(self, folder: StudyFolder, bench: Bench, constants: AttentionConstants, ranking: HeadRanking) -> None:
        self._folder, self._bench, self._constants, self._ranking = folder, bench, constants, ranking
        self.measured: dict[int, Point] = {}

    def at(self, heads: int) -> Point:
        """Measure, or look up, the scores with a number of constant heads.

        Args:
            heads: How many.
        """
        if heads not in self.measured:
            self.measured[heads] = self._measure(heads)
        return self.measured[heads]

    def drop(self, heads: int, held_out: bool = False) -> Drop:
        """The drop with a number of constant heads, on the held-out rows or on those by which heads are chosen.

        Args:
            heads: How many.
            held_out: On the held-out rows.

        Raises:
            StudyError: When the score with all heads dynamic is 0 or NaN, so that nothing can be relative to it.
        """
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
            start = time.perf_counter()
            swap_attention(bench.task.encoder, "constant", constants=self._constants, heads=chosen)
            try:
                with features_of(self._folder, bench, seen, bench.evaluations) as (train, evaluations):
                    shared = (time.perf_counter() - start) / len(missing)
                    for probe in train_probes(bench.task, train, evaluations, missing, settings.probe):
                        key = keys[probe.seed]
                        self._result(heads, probe, shared + probe.seconds, key).save(self._folder.cell(key))
            finally:
                restore_attention(bench.task.encoder)
        results = tuple(self._folder.result(key, CellResult.load) for key in keys.values())
        return Point(heads, results, bench.data.metrics[0])

    def _result(self, heads: int, trained: TrainedProbe, seconds: float, key: str) -> CellResult:
        total = len(self._ranking.heads)
        return CellResult(
            encoder=self._bench.encoder,
            task=self._bench.name,
            criterion=self._ranking.criterion,
            share=heads / total,
            constant_heads=heads,
            total_heads=total,
            seed=trained.seed,
            constants="average",
            metric=self._bench.data.metrics[0],
            scores=trained.scores,
            seconds=seconds,
            versions=versions(),
            hash=key,
        )


def largest_within(fits: Callable[[int], bool], total: int) -> int:
    """The largest number that fits, by bisection, if all numbers below one that fits do too.

    If they do not, what is found still fits, the next larger number that was tried does not, and there may be larger
    ones that do and were never tried.

    Args:
        fits: Is asked for numbers from 1 to `total`, about log2(total) times.
        total: The largest number.

    Returns:
        0 where none of those that were tried fits.

    Example:
        >>> largest_within(lambda number: number <= 5, total=8)
        5
    """
    low, high = 0, total + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
