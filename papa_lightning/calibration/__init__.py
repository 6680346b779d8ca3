"""Averaging attention matrices over data: the pass, its running sums, the file it leaves, and controls beside it."""

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
from papa_lightning.calibration.controls import CONTROL_KINDS, ConstantsKind, constants_kind, control_constants

__all__ = [
    "CONTROL_KINDS",
    "AttentionAverages",
    "AttentionConstants",
    "ConstantsKind",
    "ConstantsMismatchWarning",
    "calibrate",
    "check_max_length",
    "constants_kind",
    "control_constants",
    "describe_model",
    "eval_mode",
    "finish",
    "gather",
    "without_path",
]
