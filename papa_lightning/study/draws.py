"""What the seed of a probe draws: the order of the examples in every epoch, and what dropout drops."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SeededDropout(nn.Module):
    """Dropout with its own generator on the CPU: it drops the same features whatever else is random."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.share = share
        self.generator = generator

    def forward(self, features: Tensor) -> Tensor:
        """Drop entries in training mode, and divide the others by 1 - share."""
        if not self.training or self.share == 0:
            return features
        kept = torch.empty(features.shape).bernoulli_(1 - self.share, generator=self.generator).div_(1 - self.share)
        return features * kept.to(features.device, features.dtype)


def generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    """Generators of the order of the examples and of dropout, so that dropout does not change the order."""
    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    order, dropped = (torch.Generator().manual_seed(one) for one in seeds)
    return order, dropped


def draw_orders(drawn_by: Sequence[torch.Generator], examples: int, epochs: int, batch_size: int) -> Tensor:
    """The examples (epochs, steps, seeds, B) of every step; the number of examples stands for none."""
    batch_size = min(batch_size, examples)
    steps = -(-examples // batch_size)
    orders = torch.full((epochs, len(drawn_by), steps * batch_size), examples)
    for number, generator in enumerate(drawn_by):
        for epoch in orders:
            torch.randperm(examples, generator=generator, out=epoch[number, :examples])
    return orders.view(epochs, len(drawn_by), steps, batch_size).transpose(1, 2).contiguous()


def draw_kept(kept: Tensor, sizes: Tensor, share: float, drawn_by: torch.Generator) -> None:
    """Draw what dropout keeps as 0 or 1 into (steps, n, d), uint8, for the first rows of each step, (steps,) of n.

    The draws of :class:`SeededDropout`, in the same order.
    """
    for rows, size in zip(kept, sizes.tolist(), strict=True):
        rows[:size].bernoulli_(1 - share, generator=drawn_by)
