"""Kinds of attention on plain tensors.

May import torch, and of the package what stands below: errors, text, checks, files, runtime, registry, kernels. A new
kind is one file: a subclass of :class:`TokenMixer` with ``@KINDS.register("name")``, imported here.
"""

# Kinds, in the order in which choices and tables list them.
# isort: off
from papa_lightning.attention.constant.constant import ConstantHeads
from papa_lightning.attention.constant.gated import GatedHeads
from papa_lightning.attention.compact.mixer import CompactHeads
from papa_lightning.attention.constant.folded import FoldedHeads
from papa_lightning.attention.constant.shared import SharedHeads
from papa_lightning.attention.aft.mixers import AFTConvHeads, AFTFullHeads, AFTLocalHeads, AFTSimpleHeads
from papa_lightning.attention.additive import AdditiveHeads
from papa_lightning.attention.without_constants import UntouchedLayer

# isort: on
from papa_lightning.attention.additive import AdditiveAttention, additive_attention
from papa_lightning.attention.aft.bias import FactorizedBias, NormalizedKernel
from papa_lightning.attention.aft.conv import aft_conv, aft_conv2d
from papa_lightning.attention.aft.functional import aft_banded, aft_full, aft_local, aft_simple
from papa_lightning.attention.aft.layers import AFTConv, AFTConv2d, AFTFull, AFTLocal, AFTSimple
from papa_lightning.attention.compact.layer import CompactLayer
from papa_lightning.attention.constant.matrices import MatrixHeads
from papa_lightning.attention.dynamic import (
    DynamicAttention,
    DynamicHeads,
    RowMixing,
    Slots,
    runs_in,
    slots_at,
    slots_from_first,
)
from papa_lightning.attention.functional import fused_mask
from papa_lightning.attention.mixer import (
    KINDS,
    Block,
    KindFacts,
    Place,
    Reach,
    TokenMixer,
    declares,
    kinds_table,
    read_extra_state,
)
from papa_lightning.attention.zero_mass import ZeroMassRecord, ZeroMassWarning, ZeroMassWatch

__all__ = [
    "KINDS",
    "AFTConv",
    "AFTConv2d",
    "AFTConvHeads",
    "AFTFull",
    "AFTFullHeads",
    "AFTLocal",
    "AFTLocalHeads",
    "AFTSimple",
    "AFTSimpleHeads",
    "AdditiveAttention",
    "AdditiveHeads",
    "Block",
    "CompactHeads",
    "CompactLayer",
    "ConstantHeads",
    "DynamicAttention",
    "DynamicHeads",
    "FactorizedBias",
    "FoldedHeads",
    "GatedHeads",
    "KindFacts",
    "MatrixHeads",
    "NormalizedKernel",
    "Place",
    "Reach",
    "RowMixing",
    "SharedHeads",
    "Slots",
    "TokenMixer",
    "UntouchedLayer",
    "ZeroMassRecord",
    "ZeroMassWarning",
    "ZeroMassWatch",
    "additive_attention",
    "aft_banded",
    "aft_conv",
    "aft_conv2d",
    "aft_full",
    "aft_local",
    "aft_simple",
    "declares",
    "fused_mask",
    "kinds_table",
    "read_extra_state",
    "runs_in",
    "slots_at",
    "slots_from_first",
]
