"""A kind of attention, a criterion and a control as another package would bring them; nothing registers them here."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention import Block, ConstantHeads
from papa_lightning.calibration import AttentionConstants
from papa_lightning.criteria import HeadCriterion, RankingInputs
from papa_lightning.encoders import encoder_shape, find_encoder


class HalvedHeads(ConstantHeads):
    """Constant heads with half of their output."""

    @classmethod
    def saved_operations(cls, block: Block, share: float, options: Mapping[str, Any]) -> None:
        """Not known."""

    def mix(self, value: Tensor, mask: Tensor | None, mass: Tensor | None = None) -> Tensor:
        """Half of what constant heads give."""
        return super().mix(value, mask, mass) / 2


class EvenFirst(HeadCriterion):
    """Heads whose number is a multiple of a number first."""

    details = ("", "NUMBER")

    def __init__(self, number: int = 2) -> None:
        self.number = number

    @classmethod
    def from_detail(cls, detail: str) -> HeadCriterion | None:
        """With the number that the detail is."""
        return cls(int(detail or 2)) if detail.isdigit() or not detail else None

    def measure(self, inputs: RankingInputs) -> Tensor:
        """0 for the first heads, 1 for the others."""
        layers, heads = encoder_shape(find_encoder(inputs.encoder))
        return (torch.arange(heads) % self.number != 0).expand(layers, heads).double()


def first_token(average: AttentionConstants) -> Tensor:
    """``1`` where j = 0: all tokens see the first."""
    pattern = torch.zeros(average.max_length, average.max_length)
    pattern[:, 0] = 1
    return pattern
