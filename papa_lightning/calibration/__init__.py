"""Calibration: averaging attention matrices over data, the resulting constants, and control constants.

Imports encoders and attention. A form of constants is a subclass of EncoderConstants with its own RunningSums.
"""

from papa_lightning.calibration.averages import AttentionAverages
from papa_lightning.calibration.collect import (
    calibrate,
    check_max_length,
    describe_model,
    eval_mode,
    finish,
    gather,
    without_path,
)
from papa_lightning.calibration.compact.collect import calibrate_compact
from papa_lightning.calibration.compact.constants import CompactConstants
from papa_lightning.calibration.constants import (
    AttentionConstants,
    ConstantsMismatchWarning,
    EncoderConstants,
    describe_filling,
)
from papa_lightning.calibration.controls import CONTROLS, ConstantsKind, constants_kind, control_constants
from papa_lightning.calibration.merging import cluster_heads, folded_kinds, head_distances, merge_constants
from papa_lightning.calibration.observing import observe

__all__ = [
    "CONTROLS",
    "AttentionAverages",
    "AttentionConstants",
    "CompactConstants",
    "ConstantsKind",
    "ConstantsMismatchWarning",
    "EncoderConstants",
    "calibrate",
    "calibrate_compact",
    "check_max_length",
    "cluster_heads",
    "constants_kind",
    "control_constants",
    "describe_filling",
    "describe_model",
    "eval_mode",
    "finish",
    "folded_kinds",
    "gather",
    "head_distances",
    "merge_constants",
    "observe",
    "without_path",
]
