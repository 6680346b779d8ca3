"""Dropout with random numbers of its own."""

import torch
from torch import Tensor, nn


class SeededDropout(nn.Module):
    """Dropout that draws from a generator of its own, on the CPU, whatever else draws random numbers.

    So a probe loses the same features whichever probes train beside it, and on every device.

    Args:
        share: Share of the entries that training sets to zero; the others are divided by 1 minus it.
        generator: On the CPU.

    Example:
        >>> dropout = SeededDropout(0.5, torch.Generator().manual_seed(0))
        >>> dropout(torch.ones(1, 4))
        tensor([[0., 0., 2., 0.]])
        >>> dropout.eval()(torch.ones(1, 4))
        tensor([[1., 1., 1., 1.]])
    """

    def __init__(self, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.share = share
        self.generator = generator

    def forward(self, features: Tensor) -> Tensor:
        """Drop entries while in train mode.

        Args:
            features: Of any shape.

        Returns:
            The same shape.
        """
        if not self.training or self.share == 0:
            return features
        kept = torch.empty(features.shape).bernoulli_(1 - self.share, generator=self.generator).div_(1 - self.share)
        return features * kept.to(features.device, features.dtype)
