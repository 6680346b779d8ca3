"""Scores of a probe on stored or live features, by the metrics of its task."""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor

from papa_lightning.study.features.features import Features
from papa_lightning.study.features.reading import FeatureBatch
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.losses import UNLABELLED
from papa_lightning.tasks.probes import Probe
from papa_lightning.tasks.scores import Scored, StageScores


def evaluate_probe(
    task: EncoderTask, probe: Probe, evaluations: Mapping[str, Features], batch_size: int, device: torch.device
) -> dict[str, float]:
    """Compute loss and metrics of a probe, as validation with the Trainer does.

    Args:
        task: Gives loss and metrics.
        probe: The probe, on `device`; stays in evaluation mode.
        evaluations: Sets by name; the first one's scores have plain names.
        batch_size: Sequences at once.
        device: Where the probe is.

    Returns:
        ``accuracy``, ``loss``, ... and for a further set ``accuracy/NAME``.
    """
    if not evaluations:
        return {}
    probe.eval()
    scores = StageScores("val", task.configure_metrics()).to(device)
    scores.prepare(len(evaluations), list(evaluations))
    for number, features in enumerate(evaluations.values()):
        with torch.no_grad():
            for batch in _in_order(features, batch_size, device):
                logits = probe.classify(features.reading.inputs(probe, batch))
                scores.update(_scored(task, logits, batch, features.reading.per_token), number)
    found: dict[str, float] = {}
    for number in range(len(evaluations)):
        for name, metric in scores.logged(number).items():
            found[name.removeprefix("val/")] = float(cast(Tensor, metric.compute()))
    return found


def _in_order(features: Features, batch_size: int, device: torch.device) -> Iterator[FeatureBatch]:
    for sequences in torch.split(torch.arange(len(features)), batch_size):
        yield features.batch(sequences, device)


def _scored(task: EncoderTask, logits: Tensor, batch: FeatureBatch, per_token: bool) -> Scored:
    predicted, labels = logits.argmax(dim=-1), batch.labels
    loss = task.loss(logits, labels)
    if per_token:  # entities must not reach from one sentence into the next
        predicted, labels = (_rows(column, batch.counts) for column in (predicted, labels))
    return Scored(loss, len(batch.labels), predicted, labels)


def _rows(column: Tensor, counts: Tensor) -> Tensor:
    """One row for each sequence, (B, longest), -100 behind its end."""
    rows = torch.split(column, counts.tolist())
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=UNLABELLED)
