"""What every kind of swapped attention has in common: which heads are dynamic, and where constants wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papa_lightning.attention.zero_mass import ZeroMassWatch, first_zero_of_diagonal
from papa_lightning.exceptions import PapaError


class DynamicHeads:
    """Which heads of one layer need a query and a key right now.

    The projections and the mixer of a layer share one such object, so that both change at once when
    constants arrive. A plain object, not a module: it adds nothing to the state dict.

    Args:
        num_heads: H.

    Example:
        >>> heads = DynamicHeads(3)
        >>> heads.dynamic
        (0, 1, 2)
        >>> heads.dynamic = (1,)
        >>> heads.suspended = True
        >>> heads.dynamic
        (0, 1, 2)
    """

    def __init__(self, num_heads: int) -> None:
        self.num_heads = num_heads
        #: While suspended, every head counts as dynamic: calibration looks at the attention of the original encoder.
        self.suspended = False
        self._dynamic = tuple(range(num_heads))

    @property
    def dynamic(self) -> tuple[int, ...]:
        """The heads with a query and a key, ascending."""
        return tuple(range(self.num_heads)) if self.suspended else self._dynamic

    @dynamic.setter
    def dynamic(self, heads: Sequence[int]) -> None:
        self._dynamic = tuple(heads)

    @property
    def all_dynamic(self) -> bool:
        """True when the layer is the layer of the original encoder."""
        return self.suspended or len(self._dynamic) == self.num_heads


class TokenMixer(nn.Module):
    """What mixes the tokens in one self-attention layer, with room for the constants of some heads.

    Constants may arrive after construction (from calibration, or with a checkpoint). Until then the
    mixer is *waiting* and all heads are dynamic. "Calibrated" and the constant heads are part of the state
    dict (extra state), so a checkpoint can neither lose them nor be read into a layer with other heads.

    Args:
        layer: Number of the layer, for messages.
        num_heads: H.
        max_length: T, the longest sequence that the constants serve.
        constant_heads: The heads with constants, ascending.
        dtype: Of the constants.
        device: Of the constants.
        watch: Warns of real tokens that attend to nothing; one for all layers of an encoder warns once.

    Attributes:
        constants: (constant heads, T, T), a parameter that is frozen until someone unfreezes it. Not a buffer:
            DDP broadcasts buffers at every forward.
        calibrated: Whether ``constants`` holds constants.
    """

    def __init__(
        self,
        layer: int,
        num_heads: int,
        max_length: int,
        constant_heads: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        watch: ZeroMassWatch | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.max_length = max_length
        self.constant_heads = tuple(constant_heads)
        self.heads = DynamicHeads(num_heads)
        self.watch = watch or ZeroMassWatch()
        #: Batches up to this length need no look at the mass of their rows.
        self.certain_length = max_length
        shape = (len(self.constant_heads), max_length, max_length)
        self.constants = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device), requires_grad=False)
        self.calibrated = False

    def load_constants(self, values: Tensor) -> None:
        """Take the constants of this layer and leave the waiting state.

        Args:
            values: (H, T, T) of the whole layer; the constant heads are picked from it.
        """
        if self.constant_heads:
            chosen = values[list(self.constant_heads)]
            with torch.no_grad():
                self.constants.copy_(chosen)
        self._set_calibrated(True)

    def _set_calibrated(self, calibrated: bool) -> None:
        self.calibrated = calibrated
        self.heads.dynamic = self.dynamic_when_calibrated() if calibrated else range(self.heads.num_heads)
        self.certain_length = first_zero_of_diagonal(self.constants.detach())

    @property
    def replaces_attention(self) -> bool:
        """True while the layer differs from the layer of the original encoder."""
        return not self.heads.all_dynamic

    def dynamic_when_calibrated(self) -> Sequence[int]:
        """The heads that still need a query and a key once the constants are there."""
        raise NotImplementedError

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the values. Called only while :attr:`replaces_attention`.

        Args:
            query: (B, dynamic heads, T, h).
            key: (B, dynamic heads, T, h).
            value: (B, H, T, h).
            mask: (B, T), true for a real token, or None.
            scaling: Factor of the scores of the dynamic heads.
            dropout: Attention dropout, 0 outside training.
            need_weights: Also return the attention matrices.

        Returns:
            The mixed values (B, T, H, h), and the matrices used, (B, H, T, T), or None.
        """
        raise NotImplementedError

    def constants_for(self, value: Tensor) -> Tensor:
        """The leading part of the constants for a batch of values (B, H, t, h): (constant heads, t, t), a view.

        Raises:
            PapaError: When the sequences are longer than the constants.
        """
        length = value.shape[2]
        if length > self.max_length:
            raise PapaError(
                f"the sequences are {length} tokens long, but the constants are for max_length {self.max_length}: "
                f"cut the sequences to {self.max_length} tokens, or calibrate with a larger max_length."
            )
        return self.constants[:, :length, :length]

    def get_extra_state(self) -> Tensor:
        """Calibrated (0 or 1), T and the constant heads, as one int64 tensor: primitive, and safe to load."""
        return torch.tensor([int(self.calibrated), self.max_length, *self.constant_heads])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore from :meth:`get_extra_state`.

        Raises:
            PapaError: When the state was saved with other constant heads or another max_length.
        """
        calibrated, length, *heads = state.tolist()
        if tuple(heads) != self.constant_heads:
            raise PapaError(
                f"the checkpoint has constant heads {heads} in layer {self.layer}, but heads asks for "
                f"{list(self.constant_heads)}: pass the same heads (and ranking) as in the run that wrote it."
            )
        if length != self.max_length:
            raise PapaError(
                f"the checkpoint has constants of max_length {length} in layer {self.layer}, but the encoder was "
                f"swapped with max_length {self.max_length}: swap it with max_length={length}."
            )
        self._set_calibrated(bool(calibrated))
