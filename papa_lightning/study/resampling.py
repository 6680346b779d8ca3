"""Scores of probes and embeddings in resamples of the validation examples, pairs or queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import pandas as pd

from papa_lightning.embeddings import EMBEDDING_METRICS, Answers
from papa_lightning.study.intervals import RESAMPLES, Numbers, Sample, Unit, resampled, resampled_sums
from papa_lightning.study.predictions import LOSS, Evaluation, Predictions, number_of, same_examples
from papa_lightning.tasks.metrics import METRICS, chance_level

Sets: TypeAlias = Mapping[str, Evaluation]
"""The predictions of a probe, or the answers of an embedding, by evaluation set."""

#: Columns of counts that are resampled at once.
_COLUMNS = 512
#: Largest difference between a score and that of the stored predictions, from float32.
_ROUNDING = 1e-4


def metric_and_set(name: str) -> tuple[str, str]:
    """The metric and the evaluation set of a name such as "accuracy" or "accuracy/mismatched"."""
    metric, _, evaluated = name.partition("/")
    return metric, evaluated


def bounds_of(name: str) -> tuple[float, float]:
    """Lowest and highest value of a metric or of the loss."""
    metric, _ = metric_and_set(name)
    if metric in EMBEDDING_METRICS:
        return EMBEDDING_METRICS[metric]
    if metric in METRICS:
        return METRICS[metric].bounds
    return (0.0, math.inf) if metric == LOSS else (-math.inf, math.inf)


def is_metric(name: str) -> bool:
    """Whether a name is that of a metric, of which more is better, and not of the loss."""
    metric, _ = metric_and_set(name)
    return metric in METRICS or metric in EMBEDDING_METRICS


class Probes:
    """The probes of an encoder on a task, or its embeddings, which were evaluated on the same examples.

    Args:
        rows: Their rows of the table of results.
        predictions: The predictions of a probe by its hash, None where there are none.
    """

    def __init__(self, rows: pd.DataFrame, predictions: Callable[[str], Sets | None]) -> None:
        self._stored = {
            name: own.drop_duplicates("hash").set_index("hash")["score"] for name, own in rows.groupby("metric")
        }
        self._sets: dict[str, Sets] = {}
        self._resampled: dict[str, dict[str, Numbers]] = {}
        self._chances: dict[str, tuple[float, Numbers] | None] = {}
        self.lacking: list[str] = []
        for key in dict.fromkeys(rows["hash"]):
            sets = predictions(key)
            if sets is None or not _same(sets, next(iter(self._sets.values()), sets)):
                self.lacking.append(key)
            else:
                self._sets[key] = sets

    def sample(self, rows: pd.DataFrame, by: str = "seed") -> Sample:
        """The scores of rows of one metric, the mean for each value of the column `by`, in the order of the values."""
        groups = rows.groupby(by)
        means = groups["score"].mean(skipna=False).to_numpy(float)
        metric = str(rows["metric"].iloc[0]) if len(rows) else ""
        known = self._scores(metric)
        if not len(rows) or not set(rows["hash"]) <= known.keys():
            return Sample(means)
        drawn = [np.mean([known[key] for key in keys], axis=0) for _, keys in groups["hash"]]
        return Sample(means, np.stack(drawn, axis=1), self._examples(metric), self.unit)

    def chance(self, metric: str, level: float | None, seeds: int) -> Sample | None:
        """The best score of a constant answer, the same for each of some seeds; None where it is not known.

        `level` is the score if there are no predictions to compute it from.
        """
        first = self._first(metric)
        if first is None:
            return None if level is None else Sample(np.full(seeds, level))
        if metric not in self._chances:
            self._chances[metric] = _chance(first, metric_and_set(metric)[0])
        found = self._chances[metric]
        if found is None:
            return None
        resamples = np.repeat(found[1][:, None], seeds, axis=1)
        return Sample(np.full(seeds, found[0]), resamples, number_of(first), self.unit)

    @property
    def unit(self) -> Unit:
        """What is drawn again."""
        first = next(iter(next(iter(self._sets.values()), {}).values()), None)
        return first.kind if isinstance(first, Answers) else "examples"

    def _first(self, metric: str) -> Evaluation | None:
        """The predictions of some probe for the evaluation set of a metric, if they are enough for resamples."""
        first = next(iter(self._sets.values()), {}).get(metric_and_set(metric)[1])
        return first if first is not None and number_of(first) >= 2 else None

    def _examples(self, metric: str) -> int:
        first = self._first(metric)
        return 0 if first is None else number_of(first)

    def _scores(self, metric: str) -> dict[str, Numbers]:
        """The scores (B,) in all resamples, of each probe with predictions."""
        if metric not in self._resampled:
            self._resampled[metric] = self._resample(metric) if self._first(metric) is not None else {}
        return self._resampled[metric]

    def _resample(self, metric: str) -> dict[str, Numbers]:
        name, evaluated = metric_and_set(metric)
        counts, score, stored = dict[str, Numbers](), None, self._stored.get(metric, {})
        found_by = {key: sets[evaluated] for key, sets in self._sets.items()}
        if isinstance(self._first(metric), Answers):
            answers = {key: one for key, one in found_by.items() if isinstance(one, Answers)}
            known = {key: one.scores().get(name, math.nan) - stored.get(key, math.nan) for key, one in answers.items()}
            return {key: _of_answers(answers[key], name) for key, gap in known.items() if abs(gap) < _ROUNDING}
        for key, one in found_by.items():
            found = one.counts(name) if isinstance(one, Predictions) else None
            if found is None:
                return {}
            # A metric of the same name that computes something else has no intervals over examples.
            if abs(float(found[1].score(found[0].sum(axis=0))) - stored.get(key, math.nan)) < _ROUNDING:
                counts[key], score = found[0], found[1].score
        scores = dict[str, Numbers]()
        if score is None:
            return scores
        width = next(iter(counts.values())).shape[1]
        keys, together = list(counts), max(1, _COLUMNS // width)
        for start in range(0, len(keys), together):
            part = keys[start : start + together]
            sums = resampled_sums(np.concatenate([counts[key] for key in part], axis=1))
            for place, key in enumerate(part):
                scores[key] = score(sums[:, place * width : (place + 1) * width])
        return scores


def _of_answers(answers: Answers, metric: str) -> Numbers:
    """The scores (B,) of an embedding in resamples of its pairs or queries."""
    return resampled(number_of(answers), lambda times: answers.resampled(metric, times)[:, None])[:, 0]


def _chance(predictions: Evaluation, metric: str) -> tuple[float, Numbers] | None:
    """The best score of a constant answer, or of no order, on all examples and in resamples (B,)."""
    if isinstance(predictions, Answers):
        expected = predictions.chance(metric)
        return expected, np.full(RESAMPLES, expected)
    level = chance_level(metric, predictions.labels, predictions.logits.shape[1])
    if level is None:
        return None
    for label in range(predictions.logits.shape[1]):
        found = predictions.counts_of(metric, predictions.labels.new_full(predictions.labels.shape, label))
        if found is not None and abs(float(found[1].score(found[0].sum(axis=0))) - level) < _ROUNDING:
            return level, found[1].score(resampled_sums(found[0]))
    return level, np.full(RESAMPLES, level)


def _same(one: Sets, other: Sets) -> bool:
    """Whether two probes were evaluated on the same sets of the same examples."""
    return one.keys() == other.keys() and all(same_examples(one[name], other[name]) for name in one)
