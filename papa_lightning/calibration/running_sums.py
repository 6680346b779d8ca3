"""What sums over a stream of batches have in common, whatever is summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from papa_lightning.attention.functional import pair_counts
from papa_lightning.errors import CalibrationError


class RunningSums:
    """Float64 sums over batches, with the counts that they are divided by at the end.

    All are sums, so parts that were gathered by several processes are added and divided once, whatever their sizes.

    Args:
        max_length: T, the longest sequence.
        device: Where the sums live. On a device without float64 they live in main memory.

    Attributes:
        pair_counts: (T, T), float64, the sequences in which both positions hold a real token.
        num_sequences: 0-dim float64, the sequences with at least one real token.
    """

    #: Names of the attributes that are sums.
    added: ClassVar[tuple[str, ...]] = ("pair_counts", "num_sequences")

    def __init__(self, max_length: int, device: torch.device | str | None = None) -> None:
        device = torch.device("cpu" if device is None else device)
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.max_length = max_length
        self.pair_counts = self.zeros(max_length, max_length)
        self.num_sequences = self.zeros()

    def zeros(self, *shape: int) -> Tensor:
        """A new sum."""
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def add_mask(self, mask: Tensor) -> None:
        """Count the pairs of one batch.

        Args:
            mask: (B, t) with t up to T, true for a real token.
        """
        length = mask.shape[1]
        self.pair_counts[:length, :length] += pair_counts(mask).to(self.device)
        self.num_sequences += mask.bool().any(dim=1).sum().to(self.device)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Add up what all processes gathered. Every process must call it, one without sequences too.

        Args:
            all_reduce: Sums a tensor over processes and returns the sum.
        """
        for name in self.added:
            setattr(self, name, all_reduce(getattr(self, name)))

    def check_sequences(self) -> None:
        """Refuse sums over nothing.

        Raises:
            CalibrationError: When no sequence was added.
        """
        if self.num_sequences == 0:
            raise CalibrationError(
                "calibration saw no sequence with a real token: the batches are empty. Pass at least one batch of "
                "input_ids with an attention_mask that has ones."
            )


def check_finite(sums: Tensor) -> None:
    """Look for NaN and infinity.

    Args:
        sums: (L, H, ...).

    Raises:
        CalibrationError: Names the first layer that has one, and its heads.
    """
    ends = [torch.stack(own.flatten(1).aminmax(dim=1)) for own in sums]  # by layer, and without a tensor of their size
    finite = torch.stack(ends).isfinite().all(dim=1).tolist()  # one look
    for layer, own_heads in enumerate(finite):
        if not all(own_heads):
            heads = [head for head, own in enumerate(own_heads) if not own]
            raise CalibrationError(
                f"the attention of layer {layer}, heads {heads}, is NaN or infinite: the encoder's weights or its "
                "precision are at fault. Check the checkpoint, and calibrate in 32-bit precision."
            )
