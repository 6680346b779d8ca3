"""Criterion "variance": how much a head's attention varies over the calibration data."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from papa_lightning.criteria.base import HeadCriterion, RankingInputs
from papa_lightning.exceptions import PapaError


class AttentionVariance(HeadCriterion):
    """Mean squared L2 distance of a row of attention from its constant row, over the real rows of calibration.

        score[l,h] = mean over sequences and real i of sum over real j of (A[l,h,i,j] - C[l,h,i,j])^2

    What an average leaves out is exactly its variance, and calibration gathers it on the way; see
    :meth:`~papa_lightning.AttentionAverages.variance`. It knows nothing of what the values or the task make of it.

    Cost: none; the constants file has it.
    """

    name: ClassVar[str] = "variance"
    needs: ClassVar[frozenset[str]] = frozenset({"constants"})
    magnitude = 2**-5  # squares of rows that sum to 1 are subtracted; over many rows their rounding averages out

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`.

        Raises:
            PapaError: When the constants do not tell it.
        """
        assert inputs.constants is not None
        if inputs.constants.variance is None:
            raise PapaError(
                "constants.variance is None: these constants were not calibrated, or by a version before it was kept. "
                "Calibrate again (`papa calibrate`), or rank by another criterion."
            )
        return inputs.constants.variance
