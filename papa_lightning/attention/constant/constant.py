"""Kind "constant": chosen heads use a fixed matrix, the others stay dynamic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from papa_lightning.attention.constant.matrices import MatrixHeads
from papa_lightning.attention.cost import Block
from papa_lightning.attention.dynamic import DynamicAttention
from papa_lightning.attention.functional import apply_attention, normalized_constants
from papa_lightning.attention.head_slices import merge_heads, take_heads
from papa_lightning.attention.mixer import KindFacts
from papa_lightning.attention.registry import KINDS


@KINDS.register("constant")
class ConstantHeads(MatrixHeads):
    """Constant heads beside dynamic ones in one layer.

    Constant heads compute ``out = m (C (m V)) / max(C m, eps)`` (Hassid et al. 2022, arXiv 2211.03495, in
    the batched form of :func:`~papa_lightning.attention.functional.constant_attention`); dynamic heads
    run through the fused kernel, on their heads only. A layer without dynamic heads gets no query and no
    key. The published code also zeroes the padding rows of dynamic heads; here they stay as they are, because nothing
    reads them.

    See :class:`~papa_lightning.attention.constant.matrices.MatrixHeads` for arguments and shapes.
    """

    facts = KindFacts(
        "chosen heads: `C V`, C the calibrated average", "none that learn", "T² d, no queries and keys", "the average"
    )

    @classmethod
    def saved_operations(cls, block: Block, share: float, options: Mapping[str, Any]) -> float | None:
        """Queries, keys and scores of the constant heads."""
        return share * block.queries

    def forward(
        self, attention: DynamicAttention, value: Tensor, dropout: float = 0.0, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`TokenMixer.forward`."""
        constants, mask = self.constants_for(value), attention.mask
        self.warn_of_empty_rows(value, mask)
        if need_weights:
            weights = self._weights(attention, constants, batch=value.shape[0])
            return apply_attention(weights, value, dropout), weights
        # Chosen in the layout of the matrix product: heads that are no neighbours are copied, and then only once.
        fixed = take_heads(value.permute(1, 2, 0, 3), self.constant_heads, dim=0).permute(2, 0, 1, 3)
        if dropout > 0.0:  # the one case that needs every sequence's own matrix
            mixed = apply_attention(normalized_constants(constants, mask), fixed, dropout)
        else:
            mixed = self.mix(fixed, mask)
        parts: list[tuple[Sequence[int], Tensor]] = [(self.constant_heads, mixed)]
        if dynamic := self.heads.dynamic:
            parts.append((dynamic, attention.mix(take_heads(value, dynamic, dim=1), dropout)))
        return merge_heads(parts, dim=2), None

    def _weights(self, attention: DynamicAttention, constants: Tensor, batch: int) -> Tensor:
        fixed = normalized_constants(constants, attention.mask).expand(batch, -1, -1, -1)
        parts: list[tuple[Sequence[int], Tensor]] = [(self.constant_heads, fixed)]
        if dynamic := self.heads.dynamic:
            parts.append((dynamic, attention.matrices().to(fixed.dtype)))
        return merge_heads(parts, dim=1)
