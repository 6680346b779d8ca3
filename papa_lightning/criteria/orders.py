"""Criteria "random" and "layer": baselines that measure nothing."""

from typing import Literal

import torch
from torch import Tensor

from papa_lightning.checks import one_of, whole
from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs
from papa_lightning.encoders import encoder_shape, find_encoder

_DIRECTIONS = ("bottom_up", "top_down")


@CRITERIA.register("random")
class RandomOrder(HeadCriterion):
    """Heads in random order: a permutation of all heads over all layers.

    Args:
        seed: Seed of the permutation; ``random:3`` has seed 3.

    Cost: none.
    """

    formula = "a random order, by seed"
    measures = False
    details = ("", "SEED")

    def __init__(self, seed: int = 0) -> None:
        self.seed = whole()("seed", seed)

    @classmethod
    def from_detail(cls, detail: str) -> HeadCriterion | None:
        """See :meth:`HeadCriterion.from_detail`: the detail is the seed."""
        if not detail:
            return cls()
        return cls(int(detail)) if detail.isascii() and detail.isdigit() else None

    @property
    def spec(self) -> str:
        """See :meth:`HeadCriterion.spec`."""
        return f"random:{self.seed}"

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`."""
        layers, heads = encoder_shape(find_encoder(inputs.encoder))
        order = torch.randperm(layers * heads, generator=torch.Generator().manual_seed(self.seed))
        return order.view(layers, heads)


@CRITERIA.register("layer")
class LayerOrder(HeadCriterion):
    """Heads layer by layer: ``score[l,h] = l``, or ``-l``; ties go by the number of the head.

    Args:
        direction: ``"bottom_up"`` begins with the heads of the first layer, ``"top_down"`` with those of the last.

    Cost: none.
    """

    formula = "the number of the layer"
    measures = False
    details = _DIRECTIONS

    def __init__(self, direction: Literal["bottom_up", "top_down"] = "bottom_up") -> None:
        self.direction = one_of(*_DIRECTIONS)("direction", direction)

    @classmethod
    def from_detail(cls, detail: str) -> HeadCriterion | None:
        """See :meth:`HeadCriterion.from_detail`: the detail is the direction."""
        return cls("top_down" if detail == "top_down" else "bottom_up") if detail in _DIRECTIONS else None

    @property
    def spec(self) -> str:
        """See :meth:`HeadCriterion.spec`."""
        return f"layer:{self.direction}"

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`."""
        layers, heads = encoder_shape(find_encoder(inputs.encoder))
        numbers = torch.arange(layers)[:, None].expand(layers, heads)
        return numbers if self.direction == "bottom_up" else -numbers
