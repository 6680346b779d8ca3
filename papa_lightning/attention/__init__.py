"""WHAT mixes the tokens: attention matrices, constants and gates on plain tensors. Knows torch only."""

from papa_lightning.attention.base import Place, TokenMixer, read_extra_state
from papa_lightning.attention.constant import ConstantHeads
from papa_lightning.attention.dynamic_heads import DynamicHeads, HeadsInTurn, Turn
from papa_lightning.attention.gated import GatedHeads
from papa_lightning.attention.matrices import MatrixHeads
from papa_lightning.attention.reach import Reach
from papa_lightning.attention.registry import KINDS, mixer_class
from papa_lightning.attention.zero_mass import ZeroMassWarning, ZeroMassWatch

__all__ = [
    "KINDS",
    "ConstantHeads",
    "DynamicHeads",
    "GatedHeads",
    "HeadsInTurn",
    "MatrixHeads",
    "Place",
    "Reach",
    "TokenMixer",
    "Turn",
    "ZeroMassWarning",
    "ZeroMassWatch",
    "mixer_class",
    "read_extra_state",
]
