"""Evaluation of probes on features: their scores, and what they say of every example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from papa_lightning.study.features.features import Features, ResidentFeatures
from papa_lightning.study.features.reading import FeatureBatch
from papa_lightning.study.predictions import Predictions
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.probes import Probe
from papa_lightning.tasks.scores import UNLABELLED, Scored, StageScores

#: Sequences that are evaluated at once where their features are on the device.
_EVALUATED = 1024


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Loss and metrics by name, ``accuracy/NAME`` for another set than the first, and predictions by evaluation set."""

    scores: dict[str, float]
    predictions: dict[str, Predictions]


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
