"""The running average of attention matrices: sums and counts, divided once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from papa_lightning.attention.functional import average_attention, masked_attention_sum, pair_counts
from papa_lightning.exceptions import CalibrationError


class AttentionAverages:
    """Sums of attention matrices and pair counts over a stream of batches, in float64.

        sums[l,h,i,j] = sum over sequences of A[l,h,i,j] m_i m_j
        counts[i,j]   = sum over sequences of m_i m_j

    (Hassid et al. 2022, arXiv 2211.03495.) Both are sums, so parts that were gathered by several processes are
    added and divided once, whatever their sizes.

    Args:
        num_layers: L.
        num_heads: H.
        max_length: T, the longest sequence.
        device: Where the sums live. On a device without float64 they live in main memory.

    Attributes:
        sums: (L, H, T, T), float64.
        pair_counts: (T, T), float64.
        num_sequences: 0-dim float64, the sequences with at least one real token.

    Example:
        >>> averages = AttentionAverages(1, 1, 2)
        >>> mask = torch.tensor([[True, False]])
        >>> averages.add_mask(mask)
        >>> averages.add_attention(0, torch.ones(1, 1, 2, 2), mask)
        >>> averages.compute()
        tensor([[[[1., 0.],
                  [0., 0.]]]], dtype=torch.float64)
    """

    def __init__(
        self, num_layers: int, num_heads: int, max_length: int, device: torch.device | str | None = None
    ) -> None:
        device = torch.device("cpu" if device is None else device)
        if device.type == "mps":
            device = torch.device("cpu")
        float64 = partial(torch.zeros, dtype=torch.float64, device=device)
        self.max_length = max_length
        self.sums = float64((num_layers, num_heads, max_length, max_length))
        self.pair_counts = float64((max_length, max_length))
        self.num_sequences = float64(())

    def add_mask(self, mask: Tensor) -> None:
        """Count the pairs of one batch.

        Args:
            mask: (B, t) with t up to T, true for a real token.
        """
        length = mask.shape[1]
        self.pair_counts[:length, :length] += pair_counts(mask).to(self.pair_counts.device)
        self.num_sequences += mask.bool().any(dim=1).sum().to(self.num_sequences.device)

    def add_attention(self, layer: int, attention: Tensor, mask: Tensor | None) -> None:
        """Add the attention matrices of one layer of one batch.

        Args:
            layer: Number of the layer.
            attention: (B, H, t, t); it is overwritten.
            mask: (B, t), true for a real token, or None.
        """
        length = attention.shape[-1]
        added = masked_attention_sum(attention, mask)
        self.sums[layer, :, :length, :length] += added.to(self.sums.device)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Add up what all processes gathered. Every process must call it, one without sequences too.

        Args:
            all_reduce: Sums a tensor over processes and returns the sum.
        """
        self.sums = all_reduce(self.sums)
        self.pair_counts = all_reduce(self.pair_counts)
        self.num_sequences = all_reduce(self.num_sequences)

    def check_finite(self) -> None:
        """Look for NaN and infinity.

        Raises:
            CalibrationError: Names the first layer that has one.
        """
        finite = self.sums.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            layer = finite.index(False)
            heads = (~self.sums[layer].isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise CalibrationError(
                f"the attention of layer {layer}, heads {heads}, is NaN or infinite: the encoder's weights or its "
                "precision are at fault. Check the checkpoint, and calibrate in 32-bit precision."
            )

    def compute(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The constants, ``sums / counts`` and 0 where counts is 0.

        Args:
            dtype: Of the result.

        Returns:
            (L, H, T, T).

        Raises:
            CalibrationError: When no sequence was added, or a sum is not finite.
        """
        if self.num_sequences == 0:
            raise CalibrationError(
                "calibration saw no sequence with a real token: the batches are empty. Pass at least one batch of "
                "input_ids with an attention_mask that has ones."
            )
        self.check_finite()
        values = torch.empty(self.sums.shape, dtype=dtype, device=self.sums.device)
        for layer, sums in enumerate(self.sums):  # by layer: the whole quotient in float64 would be a second copy
            values[layer] = average_attention(sums, self.pair_counts)
        return values
