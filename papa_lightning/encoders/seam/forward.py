"""What the layers of an encoder read from the mask of a batch, read once a forward."""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from torch import Tensor

from papa_lightning.attention import Slots, fused_mask
from papa_lightning.encoders.seam.masks import key_mask
from papa_lightning.encoders.seam.slots import Positions, SlotRule, slots_of
from papa_lightning.runtime import is_exporting


class ReadMask(NamedTuple):
    """What layers read from a mask: by key (B, T), by slot, and for a fused kernel."""

    mask: Tensor | None
    slots: Slots | None
    fused: Tensor | None


class CurrentBatch(threading.local):
    """The mask and the slots of the batch that runs now, in one thread; all layers of an encoder share it.

    Attributes:
        foreign: Whether the caller made the masks of the layers itself.
        exported: The mask (B, T) of the graph that is being exported, of which the encoder makes those of its layers;
            None where the caller made them.
    """

    foreign = False
    exported: Tensor | None = None
    _mask: tuple[Tensor, Tensor] | None = None
    _slots: tuple[Tensor, object, Slots | None] | None = None
    _fused: tuple[Tensor, torch.dtype, Tensor] | None = None

    def begin(self, foreign: bool = False) -> None:
        """Forget the batch before, because masks may have changed in place since."""
        self.foreign = foreign
        self._mask = self._slots = self._fused = None

    def read(self, given: Tensor | None, rule: SlotRule, positions: Positions | None, dtype: torch.dtype) -> ReadMask:
        """The mask of a batch, its slots, and the mask that a fused kernel for a dtype takes, all at once."""
        mask = self.key_mask(given)
        return ReadMask(mask, self.slots(mask, rule, positions), self.fused_mask(mask, dtype))

    def key_mask(self, given: Tensor | None) -> Tensor | None:
        """See :func:`~papa_lightning.encoders.seam.masks.key_mask`."""
        if given is None or not isinstance(given, Tensor) or torch.compiler.is_compiling():
            known = self.exported if given is not None and is_exporting() else None
            return key_mask(given if known is None else known)  # to read a larger mask takes many operators
        if self._mask is None or self._mask[0] is not given:
            found = key_mask(given)
            assert found is not None
            self._mask = given, found.contiguous()  # else each layer's kernels copy the diagonal of a larger mask
        return self._mask[1]

    def slots(self, mask: Tensor | None, rule: SlotRule, positions: Positions | None) -> Slots | None:
        """See :func:`~papa_lightning.encoders.seam.slots.slots_of`."""
        if mask is None or torch.compiler.is_compiling():
            return slots_of(mask, rule, positions)
        if self._slots is None or self._slots[0] is not mask or self._slots[1] is not positions:
            self._slots = mask, positions, slots_of(mask, rule, positions)
        return self._slots[2]

    def fused_mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """See :func:`~papa_lightning.attention.fused_mask`; None on a CPU, whose kernels take any mask."""
        if mask is None or mask.device.type == "cpu":
            return None
        if torch.compiler.is_compiling():
            return fused_mask(mask, dtype)
        if self._fused is None or self._fused[0] is not mask or self._fused[1] != dtype:
            self._fused = mask, dtype, fused_mask(mask, dtype)
        return self._fused[2]

    def __reduce__(self) -> tuple[type[CurrentBatch], tuple[()]]:
        """Copies begin empty."""
        return type(self), ()
