"""Callbacks: when an encoder is calibrated, swapped, trained and shown, in a Lightning project that exists already.

One file and a line here a callback. May import ``lightning_project``, ``figures`` and rooms below, not ``tasks``.
"""

from papa_lightning.callbacks.attention_images import AttentionImages
from papa_lightning.callbacks.calibrating import CalibratingCallback, calibrate_in
from papa_lightning.callbacks.calibration_run import CalibrationRun
from papa_lightning.callbacks.constant_attention import ConstantAttention, constant_heads
from papa_lightning.callbacks.distillation import Distillation
from papa_lightning.callbacks.head_gates import HeadGates, ranking_of_gates
from papa_lightning.callbacks.learned_constants import LearnedConstants
from papa_lightning.callbacks.predictions import PredictionWriter
from papa_lightning.callbacks.swapped_attention import SwappedAttention
from papa_lightning.callbacks.throughput import Throughput
from papa_lightning.lightning_project.encoder import discover_encoder

__all__ = [
    "AttentionImages",
    "CalibratingCallback",
    "CalibrationRun",
    "ConstantAttention",
    "Distillation",
    "HeadGates",
    "LearnedConstants",
    "PredictionWriter",
    "SwappedAttention",
    "Throughput",
    "calibrate_in",
    "constant_heads",
    "discover_encoder",
    "ranking_of_gates",
]
