"""What every kind of swapped attention has in common: the place where constants wait, and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papa_lightning.attention.dynamic_heads import DynamicHeads
from papa_lightning.attention.reach import Reach
from papa_lightning.attention.zero_mass import ZeroMassWatch, first_zero_of_diagonal
from papa_lightning.exceptions import PapaError


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
        reach: Which keys the queries of this layer can see at all; constants beyond are not used.

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
        reach: Reach = Reach(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.layer = layer
        self.max_length = max_length
        self.constant_heads = tuple(constant_heads)
        self.heads = DynamicHeads(num_heads)
        self.watch = watch or ZeroMassWatch()
        self.reach = reach
        #: This layer looks at the attention mask for all: they get the same one, and a look costs a sync.
        self.checks_mask = False
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
        self.heads.choose(self.dynamic_when_calibrated() if calibrated else range(self.heads.num_heads))
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
        bias: Tensor | None = None,
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
            bias: What the encoder adds to the scores of the dynamic heads, or where they may look; see
                :func:`~papa_lightning.attention.functional.attention_probabilities`.

        Returns:
            The mixed values (B, T, H, h), and the matrices used, (B, H, T, T), or None.
        """
        raise NotImplementedError

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

    def get_extra_state(self) -> Tensor:
        """Calibrated (0 or 1), T and the constant heads, as one int64 tensor: primitive, and safe to load."""
        return torch.tensor([int(self.calibrated), self.max_length, *self.constant_heads])

    def set_extra_state(self, state: object) -> None:
        """Restore from :meth:`get_extra_state`.

        Sharded strategies load parameter by parameter, and torch then passes a placeholder, which changes nothing:
        there, constants come from a file.

        Raises:
            PapaError: When the state was saved with other constant heads or another max_length.
        """
        if not isinstance(state, Tensor):
            return
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
