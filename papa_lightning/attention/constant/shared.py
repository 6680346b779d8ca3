"""Kind "shared": all heads of a layer use one attention matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention.constant.matrices import MatrixHeads, check_matrices
from papa_lightning.attention.dynamic import DynamicAttention
from papa_lightning.attention.mixer import KINDS, KindFacts, Place
from papa_lightning.checks import one_of

MATRICES = ("dynamic", "constant")


@KINDS.register("shared")
class SharedHeads(MatrixHeads):
    """Heads of one layer that share one matrix, the mean of theirs, ``A = 1/H sum_h softmax(s Q_h K_h^T)``.

    A dynamic matrix costs what explicit attention costs, O(B H T^2) in memory, and is multiplied with the values of all
    heads at once. A constant matrix is ``C = 1/H sum_h C_h`` of the calibrated averages: no queries or keys, a product
    a layer, ``C X W`` with ``W = sum_h Wv_h Wo_h``: twelve heads of 64 channels express no more than one of 768.

    Args:
        matrix: "dynamic" or "constant"; the latter is the default of a swap that brings constants.

    Attributes:
        constants: (1, T, T); (0, T, T) for a dynamic matrix.

    Raises:
        PapaError: For another matrix.
    """

    reads_slots = True
    facts = KindFacts(
        "`A V` with one A, the mean of the heads' softmax(s Q K^T); or `C V`, C the mean of their averages",
        "none that learn",
        "T² d, as explicit attention; with matrix `constant` no queries and keys",
        "the encoder, or the average",
    )
    whole_layer = "gives all heads of a layer one matrix"

    def __init__(self, place: Place, heads: Sequence[int], matrix: str = "dynamic") -> None:
        one_of(*MATRICES)("matrix", matrix)
        super().__init__(place, heads)
        self.matrix = matrix
        self._make_room(place, int(matrix == "constant"))
        if matrix == "dynamic":
            self._set_calibrated(True)

    def options(self) -> dict[str, Any]:
        """See :meth:`TokenMixer.options`."""
        return {"matrix": self.matrix}

    @classmethod
    def complete_options(cls, options: Mapping[str, Any], constants_given: bool) -> dict[str, Any]:
        """See :meth:`TokenMixer.complete_options`: given constants make a constant matrix."""
        return {"matrix": "constant" if constants_given else "dynamic", **options}

    @classmethod
    def needs_constants(cls, options: Mapping[str, Any]) -> bool:
        """See :meth:`TokenMixer.needs_constants`: only a constant matrix does."""
        return options.get("matrix") == "constant"

    def load_constants(self, values: Any) -> None:
        """See :meth:`TokenMixer.load_constants`: the mean over the heads is kept."""
        check_matrices(self, values)
        with torch.no_grad():
            self.constants.copy_(values.mean(dim=0, keepdim=True))
        self._set_calibrated(True)

    def dynamic_when_calibrated(self) -> Sequence[int]:
        """See :meth:`TokenMixer.dynamic_when_calibrated`: all heads for a dynamic matrix, none for a constant one."""
        return range(self.heads.num_heads) if self.matrix == "dynamic" else ()

    def forward(
        self, attention: DynamicAttention, value: Tensor, dropout: float = 0.0, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`TokenMixer.forward`; dropout drops entries of the one matrix, for all heads together."""
        weights = None
        if self.matrix == "dynamic":
            weights = attention.matrices().mean(dim=1, keepdim=True)
        else:
            self.warn_of_empty_rows(value, attention.mask, attention.slots)
        return self.mix_as_one(attention, value, dropout, need_weights, weights)
