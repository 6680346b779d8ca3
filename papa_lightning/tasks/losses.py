"""Losses over what has a label."""

import torch.nn.functional as F
from torch import Tensor, nn

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
