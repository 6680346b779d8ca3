"""Averaging attention matrices over data: the pass, its running sums, and the file it leaves."""

from papa_lightning.calibration.averages import AttentionAverages
from papa_lightning.calibration.calibrate import (
    calibrate,
    check_max_length,
    describe_model,
    eval_mode,
    finish,
    gather,
    without_path,
)
from papa_lightning.calibration.constants import AttentionConstants, ConstantsMismatchWarning

__all__ = [
    "AttentionAverages",
    "AttentionConstants",
    "ConstantsMismatchWarning",
    "calibrate",
    "check_max_length",
    "describe_model",
    "eval_mode",
    "finish",
    "gather",
    "without_path",
]
