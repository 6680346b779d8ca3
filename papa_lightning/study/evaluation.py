"""Evaluation of probes on features: their scores, and what they say of every example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from papa_lightning.study.features.features import Features, ResidentFeatures
from papa_lightning.study.features.reading import FeatureBatch
from papa_lightning.study.predictions import Predictions
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.probes import Probe
from papa_lightning.tasks.scores import UNLABELLED, Scored, StageScores

if TYPE_CHECKING:
    from papa_lightning.study.training import ProbeSettings

#: Name of the evaluation set that holds the results of a probe after its best epoch.
BEST = "best"
#: Sequences that are evaluated at once where their features are on the device.
_EVALUATED = 1024


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Loss and metrics by name, ``accuracy/NAME`` for another set than the first, and predictions by evaluation set."""

    scores: dict[str, float]
    predictions: dict[str, Predictions]

    def beside(self, other: Evaluated) -> Evaluated:
        """These results and those of another epoch or set."""
        return Evaluated(self.scores | other.scores, self.predictions | other.predictions)


class EpochReview:
    """The evaluation of probes that are in training: after the last epoch, and where asked after every epoch.

    Args:
        task: The task of the probes.
        evaluations: Features to evaluate on; the score on the first set decides which epoch is the best.
        settings: The recipe of the probes.
    """

    def __init__(self, task: EncoderTask, evaluations: Mapping[str, Features], settings: ProbeSettings) -> None:
        self._task, self._evaluations, self._settings = task, evaluations, settings
        self._score = task.score_name.removeprefix("val/")
        self._best: list[Evaluated] = []
        #: Results of each probe after the last epoch, beside which are those of the best epoch, if asked for.
        self.evaluated: list[Evaluated] = []

    def after(self, epoch: int, probes: Sequence[Probe]) -> None:
        """Evaluate the probes after an epoch (from 0), if there is a use for it."""
        last = epoch + 1 == self._settings.max_epochs
        every = self._settings.best_epoch and bool(self._evaluations)
        if last or every:
            sets = self._evaluations if last else dict(list(self._evaluations.items())[:1])
            found = evaluate_probes(self._task, probes, sets, self._settings.batch_size)
            if every:
                self._compare([_first_set(one, epoch) for one in found])
            if last:
                self.evaluated = [one.beside(best) for one, best in zip(found, self._best or found, strict=True)]

    def _compare(self, found: Sequence[Evaluated]) -> None:
        """Keep what is better than before; of equal epochs the first one stays."""
        name = f"{self._score}/{BEST}"
        pairs = zip(self._best or found, found, strict=True)
        self._best = [new if new.scores[name] > old.scores[name] else old for old, new in pairs]


def _first_set(evaluated: Evaluated, epoch: int) -> Evaluated:
    """The results on the first set under the name of the best epoch, with the number of the epoch, from 1."""
    scores = {f"{name}/{BEST}": score for name, score in evaluated.scores.items() if "/" not in name}
    return Evaluated(scores | {f"epoch/{BEST}": float(epoch + 1)}, {BEST: evaluated.predictions[""]})


def evaluate_probes(
    task: EncoderTask, probes: Sequence[Probe], evaluations: Mapping[str, Features], batch_size: int
) -> list[Evaluated]:
    """Loss and metrics of each probe, as in validation with the Trainer, and its predictions by evaluation set."""
    if not evaluations:
        return [Evaluated({}, {}) for _ in probes]
    scores = [StageScores("val", task.configure_metrics()) for _ in probes]
    predictions: list[dict[str, Predictions]] = [{} for _ in probes]
    for probe, own in zip(probes, scores, strict=True):
        probe.eval()
        own.prepare(len(evaluations), list(evaluations))
    for number, (name, features) in enumerate(evaluations.items()):
        size = _EVALUATED if isinstance(features, ResidentFeatures) else batch_size
        parts: list[list[Tensor]] = [[] for _ in probes]
        with torch.no_grad():
            for sequences in torch.split(torch.arange(len(features)), size):
                batch = features.batch(sequences, task.device)
                for probe, own, part in zip(probes, scores, parts, strict=True):
                    logits = probe.classify(features.reading.inputs(probe, batch))
                    own.update(_scored(task, logits, batch, features.reading.per_token), number)
                    part.append(logits.float().cpu())
        for found, part in zip(predictions, parts, strict=True):
            found[name] = _predictions(task, features, torch.cat(part))
    return [Evaluated(_values(own, len(evaluations)), found) for own, found in zip(scores, predictions, strict=True)]


def _predictions(task: EncoderTask, features: Features, logits: Tensor) -> Predictions:
    """Logits (n, C) of all sequences of a split, with their labels."""
    counts, total = features.index.counts, len(features)
    each = counts if features.reading.per_token else torch.ones_like(counts)
    examples = torch.repeat_interleave(torch.arange(total), each)
    return Predictions(logits, features.index.labels, examples, total, task.label_names)


def _values(scores: StageScores, sets: int) -> dict[str, float]:
    logged = [one for number in range(sets) for one in scores.logged(number).items()]
    return {name.removeprefix("val/"): float(cast(Tensor, metric.compute())) for name, metric in logged}


def _scored(task: EncoderTask, logits: Tensor, batch: FeatureBatch, per_token: bool) -> Scored:
    """Loss, predictions and labels of a batch, on the CPU: metrics read values again and again."""
    loss, predicted, labels = (one.cpu() for one in (task.loss(logits, batch.labels), logits.argmax(-1), batch.labels))
    if per_token:  # a row for each sequence: entities must not span sentences
        predicted, labels = (
            torch.nn.utils.rnn.pad_sequence(list(torch.split(column, batch.counts.tolist())), True, UNLABELLED)
            for column in (predicted, labels)
        )
    return Scored(loss, len(batch.labels), predicted, labels)
