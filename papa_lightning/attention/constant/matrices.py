"""Mixers that keep the averaged attention matrix of each constant head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention.functional import constant_attention, matrix_product, normalized_constants
from papa_lightning.attention.mixer import Place, TokenMixer
from papa_lightning.attention.parameter_cache import Remembered
from papa_lightning.attention.tracing import constant_attention_of_any_size, is_symbolic
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.errors import PapaError


class MatrixHeads(TokenMixer):
    """A mixer with room for the constants (T x T) of some heads.

    Args:
        place: See :class:`~papa_lightning.attention.mixer.TokenMixer`. Constants beyond its reach are not used.
        heads: The heads with constants, ascending.

    Attributes:
        constants: (constant heads, T, T), a buffer; a parameter after :meth:`TokenMixer.learn_constants`.
        calibrated: Whether ``constants`` holds constants.
    """

    constant_tensors = ("constants",)
    constants: Tensor

    def __init__(self, place: Place, heads: Sequence[int]) -> None:
        super().__init__(place, heads)
        self.watch = place.watch
        #: Batches up to this length need no look at the mass of their rows.
        self.certain_length = place.max_length
        self._make_room(place, len(self.constant_heads))
        self._cut: Remembered[Tensor] = Remembered()
        self._normalized: Remembered[Tensor] = Remembered()

    def _make_room(self, place: Place, matrices: int) -> None:
        shape = (matrices, place.max_length, place.max_length)
        self.register_buffer("constants", torch.zeros(shape, dtype=place.dtype, device=place.device))

    def load_constants(self, values: Any) -> None:
        """See :meth:`TokenMixer.load_constants`."""
        check_matrices(self, values)
        if self.constant_heads:
            chosen = values[list(self.constant_heads)]
            with torch.no_grad():
                self.constants.copy_(chosen)
        self._set_calibrated(True)

    def _set_calibrated(self, calibrated: bool) -> None:
        super()._set_calibrated(calibrated)
        # Without memory there is nothing to see yet: an encoder that is being loaded looks again with its weights.
        self.certain_length = 0 if self.constants.is_meta else first_zero_of_diagonal(self.constants.detach())

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
        leading = self.constants[:, :length, :length]
        if self.reach.unlimited:
            return leading
        return self._cut.recall(lambda: self.reach.cut(leading), [self.constants], length, self.training)

    def mix(self, value: Tensor, mask: Tensor | None, mass: Tensor | None = None) -> Tensor:
        """Constant attention of the constant heads.

        Without padding the rows of all sequences have the same sums, so that the constants are divided by them once.

        Args:
            value: (B, constant heads, T, h).
            mask: (B, T), true for a real token, or None.
            mass: As in :func:`~papa_lightning.attention.functional.constant_attention`.

        Returns:
            (B, T, constant heads, h).
        """
        constants = self.constants_for(value)
        if is_symbolic(value.shape[2]):
            return constant_attention_of_any_size(constants, value, mask)
        if mask is not None:
            return constant_attention(constants, value, mask, mass)
        return matrix_product(self.normalized_for(value), value)

    def normalized_for(self, value: Tensor) -> Tensor:
        """What :meth:`constants_for` gives, divided by the sums of the rows: right for a batch without padding."""
        constants, settings = self.constants_for(value), (value.shape[2], value.dtype)
        return self._normalized.recall(
            lambda: normalized_constants(constants, None)[0].to(value.dtype), [self.constants], settings, self.training
        )

    def train(self, mode: bool = True) -> MatrixHeads:
        """See :meth:`torch.nn.Module.train`; also a good moment to forget what was made of the constants."""
        self._cut.forget()
        self._normalized.forget()
        return super().train(mode)


def check_matrices(mixer: TokenMixer, values: object) -> None:
    """Refuse constants of a layer that are not the matrices of all its heads.

    Raises:
        PapaError: Names what was found.
    """
    shape = (mixer.heads.num_heads, mixer.max_length, mixer.max_length)
    if not isinstance(values, Tensor) or tuple(values.shape) != shape:
        found = f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise PapaError(
            f"the constants of layer {mixer.layer} are {found}, but kind {mixer.kind!r} takes matrices of shape "
            f"{shape}: pass AttentionConstants, or swap to the kind that these constants are for."
        )
