"""Kind "gated": every head is a learned mixture of its dynamic and its constant attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papa_lightning.attention.base import TokenMixer
from papa_lightning.attention.functional import (
    apply_attention,
    attention_probabilities,
    constant_attention,
    dynamic_attention,
    gate_mixture,
    normalized_constants,
)
from papa_lightning.attention.reach import Reach
from papa_lightning.attention.zero_mass import ZeroMassWatch


class GatedHeads(TokenMixer):
    """All heads of one layer, each with a gate: ``A' = sigmoid(g) A + (1 - sigmoid(g)) C_normalised``.

    Source: Hassid et al. 2022, arXiv 2211.03495. Because the mixture is linear, it is taken of the two products
    with the values; the matrices themselves are built only for attention dropout or when asked for.

    Args:
        layer: Number of the layer, for messages.
        num_heads: H.
        max_length: T, the longest sequence that the constants serve.
        constant_heads: All heads of the layer.
        dtype: Of the constants and the gates.
        device: Of the constants and the gates.
        watch: See :class:`~papa_lightning.attention.base.TokenMixer`; a gated row keeps its dynamic part, so unused.
        reach: See :class:`~papa_lightning.attention.base.TokenMixer`.

    Attributes:
        gate_logits: (H,), g in the formula, a trainable parameter that starts at 0: half dynamic, half constant.
    """

    def __init__(
        self,
        layer: int,
        num_heads: int,
        max_length: int,
        constant_heads: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        watch: ZeroMassWatch | None = None,
        reach: Reach = Reach(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(layer, num_heads, max_length, constant_heads, dtype, device, watch, reach)
        self.gate_logits = nn.Parameter(torch.zeros(num_heads, dtype=dtype, device=device))

    @property
    def replaces_attention(self) -> bool:
        """True once calibrated: the gates act on every head."""
        return self.calibrated and not self.heads.suspended

    def dynamic_when_calibrated(self) -> Sequence[int]:
        """All heads: the dynamic part of the mixture needs its queries and keys."""
        return range(self.heads.num_heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        need_weights: bool = False,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`TokenMixer.forward`."""
        constants = self.constants_for(value)
        if need_weights or dropout > 0.0:
            weights = gate_mixture(
                self.gate_logits[:, None, None],
                attention_probabilities(query, key, mask, scaling, bias),
                normalized_constants(constants, mask),
            )
            return apply_attention(weights, value, dropout), weights
        mixed = gate_mixture(
            self.gate_logits[:, None],
            dynamic_attention(query, key, value, mask, scaling, bias=bias),
            constant_attention(constants, value, mask),
        )
        return mixed, None
