"""Counts: scores as functions of sums over examples, so that any resample of the examples can be scored at once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from papa_lightning.tasks.entity_f1 import EntityF1
from papa_lightning.tasks.scores import UNLABELLED

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """A metric as a function of sums of whole numbers over the examples.

    Args:
        of_examples: The counts (N, K) of N examples, from predicted and true labels (N, T); -100 for none.
        score: The scores (...) of sums (..., K) of counts.
    """

    of_examples: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Numbers], Numbers]


def ratio(numerator: Numbers, denominator: Numbers) -> Numbers:
    """Quotients, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def accuracy_counts() -> Counts:
    """Right labels and all labels."""

    def of_examples(predicted: Tensor, labels: Tensor) -> Tensor:
        known = labels != UNLABELLED
        return torch.stack([((predicted == labels) & known).sum(dim=1), known.sum(dim=1)], dim=1)

    return Counts(of_examples, lambda sums: ratio(sums[..., 0], sums[..., 1]))


def binary_f1_counts() -> Counts:
    """Labels of class 1 that were found, and labels and predictions of class 1 together."""

    def of_examples(predicted: Tensor, labels: Tensor) -> Tensor:
        found, true = predicted == 1, labels == 1
        return torch.stack([(found & true).sum(dim=1), found.sum(dim=1) + true.sum(dim=1)], dim=1)

    return Counts(of_examples, lambda sums: ratio(2 * sums[..., 0], sums[..., 1]))


def macro_f1_counts(number: int) -> Counts:
    """The counts of :func:`binary_f1_counts` for each of a number of classes; absent classes are left out."""

    def of_examples(predicted: Tensor, labels: Tensor) -> Tensor:
        found, true = _each_class(predicted, number), _each_class(labels, number)
        return torch.cat([(found & true).sum(dim=1), found.sum(dim=1) + true.sum(dim=1)], dim=1)

    def score(sums: Numbers) -> Numbers:
        right, both = sums[..., :number], sums[..., number:]
        return ratio(ratio(2 * right, both).sum(axis=-1), (both > 0).sum(axis=-1).astype(np.float64))

    return Counts(of_examples, score)


def matthews_counts(number: int) -> Counts:
    """Right labels, and the labels and the predictions of each of a number of classes."""

    def of_examples(predicted: Tensor, labels: Tensor) -> Tensor:
        right = (predicted == labels).sum(dim=1, keepdim=True)
        each = [_each_class(values, number).sum(dim=1) for values in (labels, predicted)]
        return torch.cat([right, *each], dim=1)

    def score(sums: Numbers) -> Numbers:
        right, true, predicted = sums[..., 0], sums[..., 1 : 1 + number], sums[..., 1 + number :]
        total = true.sum(axis=-1)
        covariance = right * total - (true * predicted).sum(axis=-1)
        spreads = [total**2 - (each**2).sum(axis=-1) for each in (true, predicted)]
        return ratio(covariance, np.sqrt(spreads[0]) * np.sqrt(spreads[1]))

    return Counts(of_examples, score)


def entity_counts(metric: EntityF1) -> Counts:
    """Entities that were found, and predicted and true entities together."""

    def of_examples(predicted: Tensor, labels: Tensor) -> Tensor:
        right, found, true = metric.count(predicted, labels).unbind(dim=1)
        return torch.stack([right, found + true], dim=1)

    return Counts(of_examples, lambda sums: ratio(2 * sums[..., 0], sums[..., 1]))


def _each_class(labels: Tensor, number: int) -> Tensor:
    """Whether labels (N, T) are each of a number of classes, (N, T, C)."""
    return labels[..., None] == torch.arange(number)
