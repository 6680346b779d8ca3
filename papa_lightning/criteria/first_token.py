"""Criterion "first_token": share of a head's attention on the first token."""

import torch
from torch import Tensor

from papa_lightning.calibration.shares import key_share
from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs


@CRITERIA.register("first_token")
class FirstTokenShare(HeadCriterion):
    """What is left of a head's attention beside its mean weight on the first token.

        score[l,h] = 1 - mean over real rows of A[l,h,i,0], where slot 0 holds a token

    A head that puts most of its weight on the first token (CLS in BERT) whatever the input, an attention sink, is a
    sign of an inactive head: P. Sandoval-Segura et al., Identifying and Evaluating Inactive Heads in Pretrained LLMs,
    2025, arXiv 2504.03889, who find that it misses heads that the norm of their output shows. The mean is exact for an
    average as calibrated; one that is filled gives nearly the same.

    Cost: none; the constants have it.
    """

    formula = "1 - mean over real rows of A's weight on the first token"
    source = "Sandoval-Segura et al. 2025, arXiv 2504.03889"
    needs = frozenset({"constants"})

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`."""
        constants = inputs.constants
        assert constants is not None
        first = torch.arange(constants.max_length).expand(constants.max_length, -1) == 0
        shares = [key_share(values, constants.pair_counts, first) for values in constants.values.detach()]
        return 1.0 - torch.stack(shares)
