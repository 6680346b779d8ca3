"""WHAT mixes the tokens: attention matrices, constants and gates on plain tensors. Knows torch only."""

from papa_lightning.attention.base import TokenMixer
from papa_lightning.attention.constant import ConstantHeads
from papa_lightning.attention.dynamic_heads import DynamicHeads, HeadsInTurn, Turn
from papa_lightning.attention.gated import GatedHeads
from papa_lightning.attention.reach import Reach
from papa_lightning.attention.registry import KINDS, mixer_class
from papa_lightning.attention.zero_mass import ZeroMassWarning, ZeroMassWatch

__all__ = [
    "KINDS",
    "ConstantHeads",
    "DynamicHeads",
    "GatedHeads",
    "HeadsInTurn",
    "Reach",
    "TokenMixer",
    "Turn",
    "ZeroMassWarning",
    "ZeroMassWatch",
    "mixer_class",
]
