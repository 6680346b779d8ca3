"""Loss and metrics of a task, for each data loader of a stage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection


@dataclass(frozen=True)
class Scored:
    """Mean loss of a batch of N labelled items, 0 without any; N; predictions and labels, as the metrics take them."""

    loss: Tensor
    count: int
    predicted: Tensor
    labels: Tensor


class StageScores(nn.Module):
    """Loss and metrics of a stage for each data loader; Lightning sums both over processes of different shards."""

    def __init__(self, stage: str, metrics: MetricCollection) -> None:
        super().__init__()
        self.stage = stage
        self.metrics = nn.ModuleList([metrics.clone()])
        self.losses = nn.ModuleList([_mean()])
        self._suffixes = [""]

    def prepare(self, loaders: int, names: Sequence[str] = ()) -> None:
        """Make metrics for several loaders, and reset them; names are plain for the first one, which is monitored."""
        for _ in range(len(self.metrics), loaders):
            # In train mode, which the others get back after the evaluation.
            self.metrics.append(self.of(0).clone().train())
            self.losses.append(_mean().to(self._loss(0).device).train())
        # Validation outside fit runs in inference mode and leaves states that a later fit could not add to.
        for index in range(len(self.metrics)):
            self.of(index).reset()
            self._loss(index).reset()
        known = names if len(names) == loaders else [f"dataloader_idx_{number}" for number in range(loaders)]
        self._suffixes = ["", *(f"/{name}" for name in known[1:])]

    def of(self, index: int = 0) -> MetricCollection:
        """The metrics of one loader."""
        return cast(MetricCollection, self.metrics[index])

    def update(self, scored: Scored, index: int) -> None:
        """Add a batch."""
        self._loss(index).update(scored.loss, weight=scored.count)
        if scored.count:
            self.of(index).update(scored.predicted, scored.labels)

    def logged(self, index: int) -> dict[str, Metric]:
        """Loss and metrics of one loader under the names that they are logged by."""
        named = {"loss": cast(Metric, self._loss(index)), **dict(self.of(index).items(keep_base=True))}
        return {f"{self.stage}/{name}{self._suffixes[index]}": metric for name, metric in named.items()}

    def _loss(self, index: int) -> MeanMetric:
        return cast(MeanMetric, self.losses[index])


def _mean() -> MeanMetric:
    # Keeps a loss of NaN visible. ("disable" would ignore the weights, up to torchmetrics 1.9.)
    return MeanMetric(nan_strategy=math.nan)


#: Label of items without one, as in torch and transformers.
UNLABELLED = -100


class LabelledCrossEntropy(nn.Module):
    """Cross-entropy, averaged over all labelled items; 0 if there are none, where the mean of torch would be NaN."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of logits (..., C) and labels (...), int64: classes from 0 to C-1, or -100 for none."""
        total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=UNLABELLED, reduction="sum")
        return total / (labels != UNLABELLED).sum().clamp_min(1)

    def of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the losses (S,) of S batches at once, of logits (S, N, C) and labels (S, N)."""
        items = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, reduction="none")
        return items.view(labels.shape).sum(dim=1) / (labels != UNLABELLED).sum(dim=1).clamp_min(1)
