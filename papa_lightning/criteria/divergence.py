"""Criterion "divergence": divergence of a head's attention from its constant."""

from functools import partial

import torch
from torch import Tensor

from papa_lightning.attention.functional import masked_attention_sum
from papa_lightning.calibration import eval_mode
from papa_lightning.calibration.batches import run_encoder
from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs, per_layer
from papa_lightning.encoders import attention_reaches, find_encoder, observe_attention
from papa_lightning.errors import PapaError

#: Constants count as at least this where a query can look at all, so that the divergence is finite.
FLOOR = 1e-6


@CRITERIA.register("divergence")
class AttentionDivergence(HeadCriterion):
    """Mean Kullback-Leibler divergence of a real row of attention from its constant row, in nats.

        score[l,h] = mean over real rows of sum over real j of A_ij log(A_ij / C'_ij)
        C'_ij = c_ij / sum over real j of c_ij,  c_ij = max(C_ij, 1e-6) where the layer lets i look at j, else 0

    The floor stands for pairs that calibration did not see, whose constant is 0: there the divergence would be
    infinite. A row without any constant is compared with equal weights for all keys that it can see. Source: S.
    Kullback and R. Leibler, On information and sufficiency, 1951.

    Cost: one forward pass with explicit attention matrices, and no second tensor of their size.
    """

    formula = "mean over real rows of KL(A, C'), C at least 1e-6"
    source = "Kullback and Leibler 1951"
    needs = frozenset({"constants", "batches"})
    passes = 1.3
    magnitude = 0.25  # logarithms of the order of 1 are added up, over many rows

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; batches without a real token are refused."""
        assert inputs.constants is not None
        assert inputs.batches is not None
        base = find_encoder(inputs.encoder)
        length = inputs.constants.max_length
        allowed = [reach.allowed(length, base.device) for reach in attention_reaches(base)]
        floored = [own.clamp_min(FLOOR) * seen for own, seen in zip(per_layer(inputs), allowed, strict=True)]
        sums = torch.zeros(len(floored), inputs.constants.num_heads, dtype=torch.float64, device=base.device)
        observers = [partial(_add, sums[layer], constants) for layer, constants in enumerate(floored)]
        rows = 0
        with torch.no_grad(), eval_mode(base), observe_attention(base, observers):
            for mask in run_encoder(base, inputs.batches, length, inputs.packing):
                rows += int(mask.bool().sum())
        if rows == 0:
            raise PapaError("batches has no real token: pass at least one batch whose attention_mask has ones.")
        return sums / rows


def _add(sums: Tensor, constants: Tensor, attention: Tensor, mask: Tensor | None) -> None:
    """Add the divergences of one layer of one batch, (H,); overwrites the attention matrices."""
    # As sum A log A - sum A log c + log sum c: only the first term and the mass of c are needed of single sequences.
    length = attention.shape[-1]
    constants = constants[:, :length, :length]
    if mask is None:
        mask = torch.ones(attention.shape[0], length, dtype=torch.bool, device=attention.device)
    total = masked_attention_sum(attention, mask).double()
    cross = torch.xlogy(total, constants.double()).sum(dim=(1, 2))
    mass = torch.einsum("hij,bj->bhi", constants, mask.to(constants.dtype)).double()
    scale = torch.where(mask.bool()[:, None], mass, 1.0).log().sum(dim=(0, 2))  # rows of A sum to 1
    entropy = torch.special.entr(attention, out=attention).sum(dim=-1).sum(dim=(0, 2), dtype=torch.float64)
    sums += scale - cross - entropy
