"""``papa compact``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from papa_lightning.cli.verbs.registry import VERBS
from papa_lightning.files.writing import check_output
from papa_lightning.text import tell

if TYPE_CHECKING:
    from papa_lightning.calibration import CompactConstants


@VERBS.register("compact")
def compact(
    *, constants: str, output: str, width: int = 64, rank: int = 16, tolerance: float | None = None
) -> CompactConstants:
    """Fit a relative profile and column weights to each head of a constants file.

    Args:
        constants: Constants file, as `papa calibrate` writes it.
        output: File for the compact constants.
        width: Largest distance from a token that its profile covers, in tokens, to either side.
        rank: Rank of the heads that no profile describes.
        tolerance: Largest relative error of a head; heads beyond it are of low rank or stay matrices. Without one, all
            heads are profiles.
    """
    from papa_lightning.calibration import AttentionConstants, CompactConstants
    from papa_lightning.calibration.compact.constants import describe_compact

    check_output("output", output)
    fitted = CompactConstants.fit(AttentionConstants.load(constants), width, rank, tolerance)
    tell(describe_compact(fitted), f"written  {fitted.save(output)}")
    return fitted
