"""Kind "folded": one constant matrix for all heads of a layer, whose value and output projections become one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention.constant.matrices import MatrixHeads, check_matrices
from papa_lightning.attention.dynamic import DynamicAttention
from papa_lightning.attention.functional import EPS, constant_mass, is_symbolic
from papa_lightning.attention.mixer import KINDS, Block, KindFacts, Place
from papa_lightning.errors import PapaError


def shared_product(matrix: Tensor, value: Tensor) -> Tensor:
    """One matrix (1, T, T) for all channels times values (B, T, d): (B, T, d)."""
    return torch.bmm(matrix.to(value.dtype).expand(len(value), -1, -1), value).to(value.dtype)


@KINDS.register("folded")
class FoldedHeads(MatrixHeads):
    """Heads of one layer that all have the same constant matrix C.

    The layer is exactly ``C X W + b`` with ``W = sum over heads of Wv_h Wo_h``, one (d x d) matrix: d^2 + T d
    multiply-accumulates a token in the place of 2 d^2 + T d. W is made where the encoder's projections are, in
    :mod:`papa_lightning.encoders.projections.folded`; here C is applied to its output, to all channels at once.
    Attention dropout in training drops entries of C for all heads together.

    Attributes:
        constants: (1, T, T).
    """

    constants_form = "equal_matrices"
    depends_on_backend = False
    reads_slots = True
    facts = KindFacts(
        "`C X W` with one C, W the sum over the heads of `W_v W_o`",
        "none that learn",
        "d² + T d, no queries and keys",
        "an average that all heads share",
    )
    whole_layer = "makes one map of the values of all heads"

    @classmethod
    def saved_operations(cls, block: Block, share: float, options: Mapping[str, Any]) -> float | None:
        """Queries, keys and scores, and one of the two (d x d) matrices for values and outputs."""
        return block.queries + block.hidden

    def __init__(self, place: Place, heads: Sequence[int]) -> None:
        super().__init__(place, heads)
        self._make_room(place, 1)

    def load_constants(self, values: Any) -> None:
        """See :meth:`TokenMixer.load_constants`; heads with different constants are refused."""
        check_matrices(self, values)
        if not bool((values == values[:1]).all()):
            raise PapaError(
                f'the heads of layer {self.layer} have different constants, but kind "folded" is for layers whose '
                "heads share one: merge them with merge_constants(constants), which states the error."
            )
        with torch.no_grad():
            self.constants.copy_(values[:1])
        self._set_calibrated(True)

    def mix(self, value: Tensor, mask: Tensor | None, mass: Tensor | None = None) -> Tensor:
        """See :meth:`MatrixHeads.mix`, for values (B, 1, T, d); nothing is copied into another layout."""
        if any(map(is_symbolic, value.shape)):
            return super().mix(value, mask, mass)
        channels = value[:, 0]
        if mask is None:
            return shared_product(self.normalized_for(value), channels)[:, :, None]
        constants, real = self.constants_for(value), mask.to(value.dtype)[..., None]
        mass = constant_mass(constants, mask) if mass is None else mass
        scale = mask[..., None] / mass.clamp_min(EPS).transpose(1, 2)
        return (shared_product(constants, channels * real) * scale).to(value.dtype)[:, :, None]

    def forward(
        self, attention: DynamicAttention, value: Tensor, dropout: float = 0.0, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`TokenMixer.forward`; the values are those of the folded projection, or of the heads."""
        self.warn_of_empty_rows(value, attention.mask, attention.slots)
        return self.mix_as_one(attention, value, dropout, need_weights)
