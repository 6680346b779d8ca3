"""Mixers that keep the averaged attention matrix of each constant head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papa_lightning.attention.base import Place, TokenMixer
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.exceptions import PapaError


class MatrixHeads(TokenMixer):
    """A mixer with room for the constants (T x T) of some heads.

    Args:
        place: See :class:`~papa_lightning.attention.base.TokenMixer`. Constants beyond its reach are not used.
        heads: The heads with constants, ascending.

    Attributes:
        constants: (constant heads, T, T), a parameter that is frozen until someone unfreezes it. Not a buffer:
            DDP broadcasts buffers at every forward.
        calibrated: Whether ``constants`` holds constants.
    """

    def __init__(self, place: Place, heads: Sequence[int]) -> None:
        super().__init__(place, heads)
        self.watch = place.watch
        #: Batches up to this length need no look at the mass of their rows.
        self.certain_length = place.max_length
        shape = (len(self.constant_heads), place.max_length, place.max_length)
        self.constants = nn.Parameter(torch.zeros(shape, dtype=place.dtype, device=place.device), requires_grad=False)

    def load_constants(self, values: Tensor) -> None:
        """See :meth:`TokenMixer.load_constants`."""
        if self.constant_heads:
            chosen = values[list(self.constant_heads)]
            with torch.no_grad():
                self.constants.copy_(chosen)
        self._set_calibrated(True)

    def _set_calibrated(self, calibrated: bool) -> None:
        super()._set_calibrated(calibrated)
        self.certain_length = first_zero_of_diagonal(self.constants.detach())

    def constants_for(self, value: Tensor) -> Tensor:
        """The leading part of the constants for a batch of values (B, H, t, h): (constant heads, t, t).

        Raises:
            PapaError: When the sequences are longer than the constants.
        """
        length = value.shape[2]
        if length > self.max_length:
            raise PapaError(
                f"the sequences are {length} tokens long, but the constants are for max_length {self.max_length}: "
                f"cut the sequences to {self.max_length} tokens, or calibrate with a larger max_length."
            )
        return self.reach.cut(self.constants[:, :length, :length])
