"""Base of the kinds that keep constant attention matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from papa_lightning.attention.dynamic import DynamicAttention, Slots
from papa_lightning.attention.functional import (
    apply_attention,
    constant_attention,
    constant_attention_of_any_size,
    gathered_attention,
    is_symbolic,
    matrix_product,
    normalized_constants,
)
from papa_lightning.attention.head_slices import merge_heads
from papa_lightning.attention.mixer import Place, TokenMixer
from papa_lightning.attention.parameter_cache import Remembered
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.errors import PapaError
from papa_lightning.kernels import usable

if TYPE_CHECKING:
    from papa_lightning.kernels.constant.product import RepeatedProduct

#: Heads that the kernel can tell apart: bits of an integer.
MOST_HEADS = 64


class MatrixHeads(TokenMixer):
    """Mixer with constants (T x T) of some heads.

    Args:
        place: Position in the encoder. Constants beyond its reach are not used.
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
        #: Length up to which no row of a batch can lack mass.
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
        # On the meta device there are no values yet: an encoder that is being loaded is checked again with its weights.
        self.certain_length = 0 if self.constants.is_meta else first_zero_of_diagonal(self.constants.detach())

    def constants_for(self, value: Tensor) -> Tensor:
        """Constants (constant heads, t, t) for values (B, H, t, h); sequences beyond max_length are refused."""
        return self.constants_of(value.shape[2])

    def constants_of(self, length: int) -> Tensor:
        """Constants (constant heads, t, t) for t slots; more than max_length are refused."""
        self.check_length(length)
        leading = self.constants[:, :length, :length]
        if self.reach.unlimited:
            return leading
        return self._cut.recall(lambda: self.reach.cut(leading), [self.constants], length, self._learning)

    @property
    def _learning(self) -> bool:
        """Whether the constants learn by now; those of calibration stay as they are while the encoder learns."""
        return self.training and self.constants.requires_grad

    def check_length(self, length: int) -> None:
        """Refuse more slots than max_length."""
        if length > self.max_length:
            raise PapaError(
                f"the sequences are {length} tokens long, but the constants are for max_length {self.max_length}: "
                f"cut the sequences to {self.max_length} tokens, or calibrate with a larger max_length."
            )

    def warn_of_empty_rows(self, value: Tensor, mask: Tensor | None, slots: Slots | None) -> None:
        """Warn of real rows of a batch of values (B, H, t, h) that attend to nothing, where there can be some."""
        length, mask = (value.shape[2], mask) if slots is None else (slots.number, slots.mask)
        if length > self.certain_length and not torch.compiler.is_compiling():
            constants = self.constants_of(length)
            self.watch.check(self.layer, self.constant_heads[: len(constants)], constants, mask, self.constants)

    def mix_as_one(
        self,
        attention: DynamicAttention,
        value: Tensor,
        dropout: float,
        need_weights: bool,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix values (B, H, T, h) by one matrix for all heads, (B, 1, T, T) or constants; dropout is of its entries."""
        (batch, heads, length, size), mask = value.shape, attention.mask
        channels = value.transpose(1, 2).reshape(batch, 1, length, heads * size)  # a view of a folded projection
        explicit = need_weights or (dropout > 0.0 and not self._uses_kernel(channels, attention.slots, dropout))
        if weights is None and explicit:
            weights = normalized_constants(self.constants_for(value), mask)
        if weights is None:
            mixed = self.mix_tokens(channels, attention, dropout)
        else:
            mixed = apply_attention(weights, channels, dropout)
        shown = weights.expand(batch, heads, -1, -1) if weights is not None and need_weights else None
        return mixed.reshape(batch, length, heads, size), shown

    def mix_beside(
        self, value: Tensor, attention: DynamicAttention, dynamic: Tensor | None, dropout: float = 0.0
    ) -> Tensor:
        """Mixed values (B, T, H, h) of all heads, from values (B, constant heads, T, h) and the dynamic heads' mixed.

        Args:
            value: Values of the constant heads.
            attention: Attention of the layer, with the mask of the batch and the slots of its tokens.
            dynamic: (B, T, dynamic heads, h), or None without any.
            dropout: Attention dropout, for tokens in the order of their slots.
        """
        if self._uses_kernel(value, attention.slots, dropout):
            return self._product(value, attention, self.constant_heads, dynamic, dropout)
        if dropout > 0.0:  # the one case that needs every sequence's own matrix
            fixed = apply_attention(normalized_constants(self.constants_for(value), attention.mask), value, dropout)
        else:
            fixed = self.mix_tokens(value, attention)
        return (
            fixed if dynamic is None else merge_heads([(self.constant_heads, fixed), (self.heads.dynamic, dynamic)], 2)
        )

    def _uses_kernel(self, value: Tensor, slots: Slots | None, dropout: float = 0.0) -> bool:
        """Whether the product is that of the kernel: where it runs, has the gradients, and is faster."""
        if not usable(value, self.constants) or self.heads.num_heads > MOST_HEADS:
            return False
        if slots is not None and self.constants.requires_grad and torch.is_grad_enabled():
            return False
        from papa_lightning.kernels.constant.product import faster

        return dropout > 0.0 or faster(value)

    def repeated_product(self, like: Tensor) -> RepeatedProduct | None:
        """The product of the kernel for batches without gradients and slots, or None where it is not used.

        Args:
            like: A tensor with the dtype and the device of the values.
        """
        if not self._uses_kernel(like, None):
            return None
        from papa_lightning.kernels.constant.product import RepeatedProduct

        return RepeatedProduct(self.constant_heads, self.heads.num_heads)

    def _product(
        self,
        value: Tensor,
        attention: DynamicAttention,
        heads: Sequence[int],
        dynamic: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Values of constant heads mixed by the kernel, at the places of ``heads`` beside the dynamic ones."""
        from papa_lightning.kernels.constant.product import constant_product

        slots, length = attention.slots, value.shape[2]
        self.check_length(length if slots is None else slots.number)
        all_heads = len(heads) + (0 if dynamic is None else dynamic.shape[2])
        reach = (self.reach.before, self.reach.after)
        if slots is not None:
            given = (self.constants, value, slots.real, heads, all_heads, dynamic, *reach, slots.places, dropout)
            return constant_product(*given)
        whole = length == self.max_length  # which most batches are not, and a cut takes longer than to ask
        constants = self.constants if whole else self.constants[:, :length, :length]
        return constant_product(constants, value, attention.mask, heads, all_heads, dynamic, *reach, None, dropout)

    def mix(self, value: Tensor, mask: Tensor | None, mass: Tensor | None = None) -> Tensor:
        """Values (B, constant heads, T, h) to (B, T, constant heads, h); ``mass`` are the row sums, where known."""
        constants = self.constants_for(value)
        if is_symbolic(value.shape[2]) or (mask is not None and is_symbolic(value.shape[0])):
            return constant_attention_of_any_size(constants, value, mask)
        if mask is not None:
            return constant_attention(constants, value, mask, mass)
        return matrix_product(self.normalized_for(value), value)

    def mix_tokens(self, value: Tensor, attention: DynamicAttention, dropout: float = 0.0) -> Tensor:
        """Mix as :meth:`mix`; n tokens in S slots by n^2 gathered entries, or where these are not fewer, by slot.

        Dropout is that of the kernel: without one it takes explicit matrices.
        """
        slots = attention.slots
        if self._uses_kernel(value, attention.slots, dropout):
            return self._product(value, attention, range(value.shape[1]), None, dropout)
        if slots is None:
            return self.mix(value, attention.mask)
        if value.shape[2] >= slots.number:
            by_slot = replace(attention, mask=slots.mask, slots=None)
            return slots.read(self.mix_tokens(slots.fill(value), by_slot))
        self.constants_of(slots.number)  # refuses slots beyond max_length
        return gathered_attention(self.constants_of(self.max_length), value, slots.places, slots.real)

    def normalized_for(self, value: Tensor) -> Tensor:
        """Constants of :meth:`constants_for` with rows that sum to 1, for a batch without padding."""
        constants, settings = self.constants_for(value), (value.shape[2], value.dtype)
        return self._normalized.recall(
            lambda: normalized_constants(constants, None)[0].to(value.dtype), [self.constants], settings, self._learning
        )

    def train(self, mode: bool = True) -> MatrixHeads:
        """See :meth:`torch.nn.Module.train`; results that were computed from the constants are forgotten."""
        self._cut.forget()
        self._normalized.forget()
        return super().train(mode)


def check_matrices(mixer: TokenMixer, values: object) -> None:
    """Refuse constants of a layer that are not the matrices of all its heads."""
    shape = (mixer.heads.num_heads, mixer.max_length, mixer.max_length)
    if not isinstance(values, Tensor) or tuple(values.shape) != shape:
        found = f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise PapaError(
            f"the constants of layer {mixer.layer} are {found}, but kind {mixer.kind!r} takes matrices of shape "
            f"{shape}: pass AttentionConstants, or swap to the kind that these constants are for."
        )
