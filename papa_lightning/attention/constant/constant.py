"""Kind "constant": chosen heads use a fixed matrix, the others stay dynamic."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from papa_lightning.attention.constant.matrices import MatrixHeads
from papa_lightning.attention.dynamic import DynamicAttention
from papa_lightning.attention.functional import apply_attention, normalized_constants
from papa_lightning.attention.head_slices import merge_heads, take_heads
from papa_lightning.attention.mixer import KINDS, Block, KindFacts, TokenMixer


@KINDS.register("constant")
class ConstantHeads(MatrixHeads):
    """Constant heads beside dynamic ones in one layer.

    Constant heads compute ``out = m (C (m V)) / max(C m, eps)`` (Hassid et al. 2022, arXiv 2211.03495), see
    :func:`~papa_lightning.attention.functional.constant_attention`; dynamic heads run through the fused kernel. A layer
    without them gets no query and no key. The published code also zeroes the padding rows of dynamic heads, which
    nothing reads.

    See :class:`~papa_lightning.attention.MatrixHeads` for arguments and shapes.
    """

    reads_slots = True
    reorders_values = True
    #: Whether it has :meth:`mix_parts`, and that does the same as forward; not inherited.
    mixes_parts: ClassVar[bool] = True
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
        if need_weights:
            self.warn_of_empty_rows(value, attention.mask, attention.slots)
            by_head = attention.values_of(value, range(value.shape[1]))
            return shown_mixing(self, self.constants_for(value), attention, by_head, dropout)
        dynamic = self.heads.dynamic
        own = attention.values_of(value, dynamic) if dynamic else None
        # Chosen in the layout of the matrix product: heads that are no neighbours are copied, and then only once.
        fixed = attention.values_of(value.permute(1, 2, 0, 3), self.constant_heads, dim=0).permute(2, 0, 1, 3)
        return self.mix_parts(attention, own, fixed, dropout), None

    def mix_parts(self, attention: DynamicAttention, own: Tensor | None, fixed: Tensor, dropout: float = 0.0) -> Tensor:
        """Mixed values (B, T, H, h) of all heads.

        Args:
            attention: Attention of the dynamic heads, with the mask of the batch and the slots of its tokens.
            own: (B, dynamic heads, T, h), values of the dynamic heads; None without any.
            fixed: (B, constant heads, T, h), values of the constant heads.
            dropout: Attention dropout; tokens are in the order of their slots then.
        """
        self.warn_of_empty_rows(fixed, attention.mask, attention.slots)
        return self.mix_beside(fixed, attention, None if own is None else attention.mix(own, dropout), dropout)


def with_dynamic(
    mixer: TokenMixer,
    parts: list[tuple[Sequence[int], Tensor]],
    attention: DynamicAttention,
    value: Tensor,
    dropout: float,
) -> Tensor:
    """Mixed values (B, T, H, h) of all heads, from those of groups of constant heads."""
    if dynamic := mixer.heads.dynamic:
        parts = [*parts, (dynamic, attention.mix(take_heads(value, dynamic, dim=1), dropout))]
    return merge_heads(parts, dim=2)


def shown_mixing(
    mixer: TokenMixer, constants: Tensor, attention: DynamicAttention, value: Tensor, dropout: float
) -> tuple[Tensor, Tensor]:
    """Mixed values (B, T, H, h) and matrices (B, H, T, T) of all heads, from the matrices of the constant heads."""
    fixed = normalized_constants(constants, attention.mask).expand(value.shape[0], -1, -1, -1)
    parts: list[tuple[Sequence[int], Tensor]] = [(mixer.constant_heads, fixed)]
    if dynamic := mixer.heads.dynamic:
        parts.append((dynamic, attention.matrices().to(fixed.dtype)))
    weights = merge_heads(parts, dim=1)
    return apply_attention(weights, value, dropout), weights
