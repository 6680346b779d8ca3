"""Metrics of tasks, and the registry of those that probes are scored by."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef
from torchmetrics.text import Perplexity

from papa_lightning.errors import PapaError
from papa_lightning.registry import Registry
from papa_lightning.tag_schemes import Scheme
from papa_lightning.tasks.counts import (
    Counts,
    accuracy_counts,
    binary_f1_counts,
    entity_counts,
    macro_f1_counts,
    matthews_counts,
)
from papa_lightning.tasks.entity_f1 import EntityF1
from papa_lightning.tasks.scores import UNLABELLED


class MatthewsCorrCoef(MulticlassMatthewsCorrCoef):
    """Matthews correlation of classes; 0 where undefined, as in GLUE, while torchmetrics can score it above chance."""

    def compute(self) -> Tensor:
        """Compute the correlation, a float scalar from -1 to 1, from the confusion matrix."""
        # Integers up to the last step: differences of squares of counts lose digits in float32.
        confusion = self.confmat
        assert isinstance(confusion, Tensor)
        true, predicted, count = confusion.sum(1), confusion.sum(0), confusion.sum()
        covariance = confusion.trace() * count - (true * predicted).sum()
        spread_true = (count**2 - (true**2).sum()).float()
        spread_predicted = (count**2 - (predicted**2).sum()).float()
        scale = spread_true.sqrt() * spread_predicted.sqrt()
        return torch.where(scale > 0, covariance.float() / scale, torch.zeros_like(scale))


class LogitPerplexity(Perplexity):
    """Perplexity of torchmetrics for N tokens without the dimension of sequences."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add tokens: logits (N, V), and the true tokens (N,)."""
        super().update(preds[None].float(), target[None])


@dataclass(frozen=True)
class Labels:
    """Labels of a task: their number, their names by number if known, and the scheme of tags, recognised if None."""

    number: int
    names: Sequence[str] | None = None
    scheme: Scheme | None = None


@dataclass(frozen=True)
class TaskMetric:
    """A metric of tasks with one label a sequence, (B,), or one a token, (B, T), -100 for none.

    Args:
        level: What has a label.
        make: The metric for the labels of a task.
        chance: Best score of a constant answer, of the share of each label; None where it is not known.
        counts: The metric as a function of sums over the examples, None for one that is none: scores then have
            intervals over seeds only.
        bounds: Lowest and highest score.
    """

    level: Literal["sequence", "token"]
    make: Callable[[Labels], Metric]
    chance: Callable[[Tensor], float | None] = lambda shares: None
    counts: Callable[[Labels], Counts | None] = lambda labels: None
    bounds: tuple[float, float] = (-math.inf, math.inf)


#: Metrics of sequence and token classification by name.
METRICS: Registry[TaskMetric] = Registry("metric", lambda part: isinstance(part, TaskMetric))


def _f1(labels: Labels) -> Metric:
    number = labels.number
    return BinaryF1Score() if number == 2 else MulticlassF1Score(num_classes=number, average="macro")


def _entity_f1(labels: Labels) -> EntityF1:
    if labels.names is None:
        raise PapaError(
            "metrics has 'entity_f1', but label_names is None: pass the names of the tags, or a datamodule that has "
            "label_names."
        )
    return EntityF1(labels.names, labels.scheme)


def _most_frequent(shares: Tensor) -> float:
    return float(shares.max())


def _always_class_1(shares: Tensor) -> float | None:
    return float(2 * shares[1] / (1 + shares[1])) if len(shares) == 2 else None


def _f1_counts(labels: Labels) -> Counts:
    return binary_f1_counts() if labels.number == 2 else macro_f1_counts(labels.number)


_SHARE = (0.0, 1.0)
METRICS["accuracy"] = TaskMetric(
    "sequence",
    lambda labels: MulticlassAccuracy(num_classes=labels.number, average="micro"),
    _most_frequent,
    lambda labels: accuracy_counts(),
    _SHARE,
)
METRICS["matthews_corrcoef"] = TaskMetric(
    "sequence",
    lambda labels: MatthewsCorrCoef(num_classes=labels.number),
    lambda shares: 0.0,
    lambda labels: matthews_counts(labels.number),
    bounds=(-1.0, 1.0),
)
METRICS["f1"] = TaskMetric("sequence", _f1, _always_class_1, _f1_counts, _SHARE)
METRICS["token_accuracy"] = TaskMetric(
    "token",
    lambda labels: MulticlassAccuracy(num_classes=labels.number, average="micro", ignore_index=UNLABELLED),
    _most_frequent,
    lambda labels: accuracy_counts(),
    _SHARE,
)
METRICS["entity_f1"] = TaskMetric(
    "token", _entity_f1, lambda shares: 0.0, lambda labels: entity_counts(_entity_f1(labels)), _SHARE
)


def chance_level(metric: str, labels: Tensor, num_labels: int) -> float | None:
    """Best score of a constant answer in a metric, for labels of any shape (-100: no label); None where unknown.

    All ``num_labels`` classes count, also those that no label has: the mean over classes is not that over two of them.
    """
    if metric not in METRICS:
        return None
    known = labels[labels != UNLABELLED]
    return METRICS[metric].chance(torch.bincount(known, minlength=num_labels).double() / len(known))


def classification_metrics(names: Sequence[str], num_labels: int) -> MetricCollection:
    """Metrics by name of predicted and true classes (B,); ``f1`` is that of class 1 of two, or the mean of all."""
    return _collection("sequence", names, Labels(num_labels))


def token_metrics(
    names: Sequence[str], num_labels: int, label_names: Sequence[str] | None, scheme: Scheme | None = None
) -> MetricCollection:
    """Metrics by name of predicted and true tags (B, T), -100 for none; ``entity_f1`` is `EntityF1` of named tags."""
    return _collection("token", names, Labels(num_labels, label_names, scheme))


def _collection(level: str, names: Sequence[str], labels: Labels) -> MetricCollection:
    known = [name for name in METRICS if METRICS[name].level == level]
    choices = ", ".join(known)
    if isinstance(names, str) or not names:
        raise PapaError(f"metrics is {names!r}, but must be a list of at least one name: choose from {choices}.")
    for name in names:
        if name not in known:
            raise PapaError(f"metrics has {name!r}, which is not a metric of this task: choose from {choices}.")
    if len(set(names)) != len(names):
        raise PapaError(f"metrics is {list(names)}, which names a metric twice: name each once.")
    return MetricCollection({name: METRICS[name].make(labels) for name in names})
