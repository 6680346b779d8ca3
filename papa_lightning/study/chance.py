"""What a score is worth that has learned nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from papa_lightning.tasks.losses import UNLABELLED


def chance_level(metric: str, labels: Tensor) -> float | None:
    """The score of always giving the same answer, the best one.

    With p the share of the most frequent label: p for an accuracy, 0 for a correlation and for entities. For the F1 of
    class 1, which has the share q: 2 q / (1 + q).

    Args:
        metric: Name of the metric.
        labels: Of any shape; -100 stands where there is none.

    Returns:
        The score, or None for a metric about which nothing is known.

    Example:
        >>> chance_level("accuracy", torch.tensor([0, 1, 1, 1]))
        0.75
        >>> chance_level("f1", torch.tensor([0, 1]))
        0.6666666666666666
    """
    known = labels[labels != UNLABELLED]
    shares = torch.bincount(known).double() / len(known)
    if metric in ("accuracy", "token_accuracy"):
        return float(shares.max())
    if metric in ("matthews_corrcoef", "entity_f1"):
        return 0.0
    if metric == "f1" and len(shares) == 2:
        return float(2 * shares[1] / (1 + shares[1]))
    return None
