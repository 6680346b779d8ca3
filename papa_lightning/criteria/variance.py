"""Criterion "variance": variance of a head's attention over the calibration data."""

import torch
from torch import Tensor

from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs, precision
from papa_lightning.encoders import find_encoder
from papa_lightning.errors import PapaError
from papa_lightning.ranking import UNITS


@CRITERIA.register("variance")
class AttentionVariance(HeadCriterion):
    """Mean squared L2 distance of a row of attention from its constant row, over the real rows of calibration.

        score[l,h] = mean over sequences and real i of sum over real j of (A[l,h,i,j] - C[l,h,i,j])^2

    It is the variance that an average leaves out, and calibration sums it along the way; see
    :meth:`~papa_lightning.AttentionAverages.variance`. It does not depend on the values or the task.

    Cost: none; the constants file has it.
    """

    formula = "mean over real rows of the squared distance of A's row from C's"
    source = "what the average leaves out"
    needs = frozenset({"constants"})

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; constants without variance are refused."""
        assert inputs.constants is not None
        if inputs.constants.variance is None:
            raise PapaError(
                "constants.variance is None: these constants were not calibrated, or by a version before it was kept. "
                "Calibrate again (`papa calibrate`), or rank by another criterion."
            )
        return inputs.constants.variance

    def rounding(self, inputs: RankingInputs, scores: Tensor) -> float:
        """See :meth:`HeadCriterion.rounding`: relative to the mean squared norm of a row."""
        constants = inputs.constants
        assert constants is not None
        counts = constants.pair_counts.double()
        explained = [(values.double().square() * counts).sum(dim=(1, 2)) for values in constants.values]
        norms = torch.stack(explained) / counts.diagonal().sum() + scores
        return 2 / UNITS * precision(find_encoder(inputs.encoder)) * float(norms.max())
