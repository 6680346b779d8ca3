"""WHERE attention goes in an encoder: finding, swapping and restoring it. Knows torch and transformers."""

from papa_lightning.encoders.families import FAMILIES, encoder_shape, find_encoder, is_supported
from papa_lightning.encoders.fingerprint import weights_fingerprint
from papa_lightning.encoders.inputs import accepted_inputs, check_vocabulary, fits_positions, position_limit
from papa_lightning.encoders.selection import HeadSelection, select_heads
from papa_lightning.encoders.state import swap_as_saved
from papa_lightning.encoders.swap import (
    gate_logits,
    is_calibrated,
    load_constants,
    observe_attention,
    restore_attention,
    swap_attention,
    swapped_layers,
)

__all__ = [
    "FAMILIES",
    "HeadSelection",
    "accepted_inputs",
    "check_vocabulary",
    "encoder_shape",
    "find_encoder",
    "fits_positions",
    "gate_logits",
    "is_calibrated",
    "is_supported",
    "load_constants",
    "observe_attention",
    "position_limit",
    "restore_attention",
    "select_heads",
    "swap_as_saved",
    "swap_attention",
    "swapped_layers",
    "weights_fingerprint",
]
