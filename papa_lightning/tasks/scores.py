"""What a task is scored by, and the metrics of each data loader of a stage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection


@dataclass(frozen=True)
class Scored:
    """What came out of a batch, N things with a label each.

    Args:
        loss: Mean over the N things, a scalar; 0 without any.
        count: N.
        predicted: What the metrics are updated with.
        labels: What the metrics compare it with.
    """

    loss: Tensor
    count: int
    predicted: Tensor
    labels: Tensor


class StageScores(nn.Module):
    """Loss and metrics of a stage, for each of its data loaders apart.

    All are torchmetrics objects, which Lightning sums over processes once an epoch: the loss too, because the mean
    that ``self.log(..., sync_dist=True)`` takes is wrong for shards of different size.

    Args:
        stage: ``"val"`` or ``"test"``.
        metrics: Copied for each loader.
    """

    def __init__(self, stage: str, metrics: MetricCollection) -> None:
        super().__init__()
        self.stage = stage
        self.metrics = nn.ModuleList([metrics.clone()])
        self.losses = nn.ModuleList([_mean()])
        self._suffixes = [""]

    def prepare(self, loaders: int, names: Sequence[str] = ()) -> None:
        """Make room for several loaders, and start from nothing.

        Adds neither parameters nor saved state, so it changes no checkpoint.

        Args:
            loaders: Their number.
            names: Their names, if they have any. The first one's metrics have plain names all the same, so that what
                is monitored does not depend on how many there are.
        """
        for _ in range(len(self.metrics), loaders):
            # In the mode that the others get back after the evaluation.
            self.metrics.append(self.of(0).clone().train())
            self.losses.append(_mean().to(self._loss(0).device).train())
        # Evaluation alone runs in inference mode and leaves states of a kind that a later fit could not add to.
        for index in range(len(self.metrics)):
            self.of(index).reset()
            self._loss(index).reset()
        named = len(names) == loaders
        further = [f"/{names[i]}" if named else f"/dataloader_idx_{i}" for i in range(1, loaders)]
        self._suffixes = ["", *further]

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
    # NaN in place of NaN: a loss of NaN is to be seen. ("disable" would leave out the weights, up to torchmetrics 1.9.)
    return MeanMetric(nan_strategy=math.nan)


#: The label of what has none, as in torch and transformers.
UNLABELLED = -100


class LabelledCrossEntropy(nn.Module):
    """Cross-entropy, averaged over everything that has a label; 0 when nothing has.

    torch's own mean is NaN then, and one sentence without a masked token would end a training.

    Example:
        >>> import torch
        >>> loss = LabelledCrossEntropy()
        >>> loss(torch.zeros(1, 3, 2), torch.tensor([[1, -100, 0]]))
        tensor(0.6931)
        >>> loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
        tensor(0.)
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: (..., C).
            labels: (...), int64: classes from 0 to C-1, or -100 for no label.

        Returns:
            A scalar.
        """
        total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=UNLABELLED, reduction="sum")
        return total / (labels != UNLABELLED).sum().clamp_min(1)
