"""Attention in pretrained encoders: finding, swapping, restoring and observing it; packing of their batches.

May import torch, transformers and the attention room. A family of encoders is added in families/, another way to hand
attention to a mixer in seam/, another layout of query and key weights in projections/.
"""

from papa_lightning.encoders.families.places import PlacedArgument
from papa_lightning.encoders.families.table import FAMILIES, EncoderFamily, register_family
from papa_lightning.encoders.finding import (
    SupportedEncoder,
    attention_reaches,
    encoder_shape,
    find_encoder,
    is_calibrated,
    is_supported,
    swapped_layers,
)
from papa_lightning.encoders.head_selection import HeadSelection, select_heads
from papa_lightning.encoders.inputs import (
    accepted_inputs,
    check_embeddings,
    check_token_types,
    check_vocabulary,
    compute_device,
    describe_lengths,
    fits_positions,
    image_length,
    position_limit,
    takes_images,
)
from papa_lightning.encoders.layer_plan import Kinds, LayerPlan, Options, plan_whole_layers
from papa_lightning.encoders.moved import exact_when_packed, moved_tokens
from papa_lightning.encoders.notes import LostSwapWarning, SwapNote, is_noted
from papa_lightning.encoders.packing import PackedBatch, PackedSequences, Packer, Packing, similar_lengths
from papa_lightning.encoders.position_ids import native_position_ids
from papa_lightning.encoders.projections.cut import (
    CutProjection,
    FusedConv1D,
    FusedProjection,
    GroupedKeyProjection,
    HeadProjection,
    InterleavedProjection,
)
from papa_lightning.encoders.saved_state import SwapReader, swap_as_saved
from papa_lightning.encoders.seam.attaching import dynamic_attention_of, observe_attention, replace_mixing
from papa_lightning.encoders.seam.batch import ReadBatch, UnmaskedPaddingWarning
from papa_lightning.encoders.seam.inline import InlineAttention
from papa_lightning.encoders.seam.masks import check_mask
from papa_lightning.encoders.swap import (
    gate_logits,
    learn_constants,
    leave_out_of_ddp,
    load_constants,
    restore_attention,
    swap_attention,
)
from papa_lightning.encoders.weights import PlainStateWarning, plain_state, weights_fingerprint

__all__ = [
    "FAMILIES",
    "CutProjection",
    "EncoderFamily",
    "FusedConv1D",
    "FusedProjection",
    "GroupedKeyProjection",
    "HeadProjection",
    "HeadSelection",
    "InlineAttention",
    "InterleavedProjection",
    "Kinds",
    "LayerPlan",
    "LostSwapWarning",
    "Options",
    "PackedBatch",
    "PackedSequences",
    "Packer",
    "Packing",
    "PlacedArgument",
    "PlainStateWarning",
    "ReadBatch",
    "SupportedEncoder",
    "SwapNote",
    "SwapReader",
    "UnmaskedPaddingWarning",
    "accepted_inputs",
    "attention_reaches",
    "check_embeddings",
    "check_mask",
    "check_token_types",
    "check_vocabulary",
    "compute_device",
    "describe_lengths",
    "dynamic_attention_of",
    "encoder_shape",
    "exact_when_packed",
    "find_encoder",
    "fits_positions",
    "gate_logits",
    "image_length",
    "is_calibrated",
    "is_noted",
    "is_supported",
    "learn_constants",
    "leave_out_of_ddp",
    "load_constants",
    "moved_tokens",
    "native_position_ids",
    "observe_attention",
    "plain_state",
    "plan_whole_layers",
    "position_limit",
    "register_family",
    "replace_mixing",
    "restore_attention",
    "select_heads",
    "similar_lengths",
    "swap_as_saved",
    "swap_attention",
    "swapped_layers",
    "takes_images",
    "weights_fingerprint",
]
