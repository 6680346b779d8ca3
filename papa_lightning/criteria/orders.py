"""Criteria that look at nothing: what the others have to be better than."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from papa_lightning.criteria.base import HeadCriterion, RankingInputs
from papa_lightning.encoders import encoder_shape, find_encoder
from papa_lightning.errors import PapaError


class RandomOrder(HeadCriterion):
    """Heads in random order: a permutation of all heads over all layers, from a generator of its own.

    Args:
        seed: Of the generator; ``random:3`` has seed 3.

    Cost: none.
    """

    name: ClassVar[str] = "random"

    def __init__(self, seed: int = 0) -> None:
        if not 0 <= seed < 2**63:
            raise PapaError(f"seed is {seed}, but must be a whole number from 0 on.")
        self.seed = seed

    @property
    def spec(self) -> str:
        """With the seed."""
        return f"random:{self.seed}"

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`."""
        layers, heads = encoder_shape(find_encoder(inputs.encoder))
        order = torch.randperm(layers * heads, generator=torch.Generator().manual_seed(self.seed))
        return order.view(layers, heads)


class LayerOrder(HeadCriterion):
    """Heads layer by layer: ``score[l,h] = l``, or ``-l``; ties go by the number of the head.

    Args:
        direction: ``"bottom_up"``: the heads of the first layer become constant first; ``"top_down"``: of the last.

    Cost: none.
    """

    name: ClassVar[str] = "layer"

    def __init__(self, direction: Literal["bottom_up", "top_down"] = "bottom_up") -> None:
        if direction not in ("bottom_up", "top_down"):
            raise PapaError(f"direction is {direction!r}, but must be 'bottom_up' or 'top_down'.")
        self.direction = direction

    @property
    def spec(self) -> str:
        """With the direction."""
        return f"layer:{self.direction}"

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`."""
        layers, heads = encoder_shape(find_encoder(inputs.encoder))
        numbers = torch.arange(layers)[:, None].expand(layers, heads)
        return numbers if self.direction == "bottom_up" else -numbers
