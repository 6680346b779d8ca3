"""Kind "gated": every head is a learned mixture of its dynamic and its constant attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from papa_lightning.attention.constant.matrices import MatrixHeads
from papa_lightning.attention.dynamic import DynamicAttention
from papa_lightning.attention.functional import apply_attention, gate_mixture, normalized_constants
from papa_lightning.attention.mixer import KINDS, Block, KindFacts, Place


@KINDS.register("gated")
class GatedHeads(MatrixHeads):
    """Heads of one layer with a gate each: ``A' = sigmoid(g) A + (1 - sigmoid(g)) C_normalised``.

    Source: Hassid et al. 2022, arXiv 2211.03495. Because the mixture is linear, it is taken of the two products
    with the values; the matrices themselves are built only for attention dropout or when asked for.

    Args:
        place: Position in the encoder; its watch is unused, because a gated row keeps its dynamic part.
        heads: All heads of the layer.

    Attributes:
        gate_logits: (H,), g in the formula, a trainable parameter that starts at 0: half dynamic, half constant.
    """

    reads_slots = True
    facts = KindFacts("`(sigmoid(g) A + (1 - sigmoid(g)) C) V`", "H gates", "more than attention", "the average")
    whole_layer = "puts a gate on every head"

    @classmethod
    def saved_operations(cls, block: Block, share: float, options: Mapping[str, Any]) -> float | None:
        """Nothing is saved: the product of constants and values is added."""
        return -block.length

    def __init__(self, place: Place, heads: Sequence[int]) -> None:
        super().__init__(place, heads)
        self.gate_logits = nn.Parameter(torch.zeros(place.num_heads, dtype=place.dtype, device=place.device))

    def dynamic_when_calibrated(self) -> Sequence[int]:
        """See :meth:`TokenMixer.dynamic_when_calibrated`: all heads, for the dynamic part of the mixture."""
        return range(self.heads.num_heads)

    def forward(
        self, attention: DynamicAttention, value: Tensor, dropout: float = 0.0, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`TokenMixer.forward`."""
        if need_weights or dropout > 0.0:
            weights = gate_mixture(
                self.gate_logits[:, None, None],
                attention.matrices(),
                normalized_constants(self.constants_for(value), attention.mask),
            )
            return apply_attention(weights, value, dropout), weights
        constant = self.mix_tokens(value, attention)
        return gate_mixture(self.gate_logits[:, None], attention.mix(value), constant), None
