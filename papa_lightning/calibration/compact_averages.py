"""Running sums for compact constants, taken from attention as it passes: no matrix for each head is ever kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from papa_lightning.attention import DynamicAttention, Reach
from papa_lightning.attention.functional import apply_attention, pair_counts
from papa_lightning.calibration.compact_fit import BandSums, band_sums, row_bands
from papa_lightning.exceptions import CalibrationError


class CompactAverages:
    """Sums of attention over diagonals and columns, and over a sample of query rows, in float64.

    With ``S_ij = sum over sequences of A[i,j] m_i m_j``:

        diagonals[l,h,w+o] = sum of S_ij over i - j = o        columns[l,h,j] = sum over i of S_ij

    The sampled rows of S tell how well the fit describes the average: its loss is a sum over rows.

    Args:
        reaches: Of each layer.
        num_heads: H.
        max_length: T.
        width: w, the farthest offset of the profile.
        num_rows: How many query rows are kept, drawn without regard to the data; T at most.
        device: Where the sums live. On a device without float64 they live in main memory.

    Attributes:
        diagonals: (L, H, 2 w + 1).
        columns: (L, H, T).
        sampled: (L, H, rows, T), the sampled rows of S.
        rows: (rows,), their numbers, ascending.
        pair_counts: (T, T), for all heads of all layers.
        num_sequences: 0-dim.
    """

    def __init__(
        self,
        reaches: Sequence[Reach],
        num_heads: int,
        max_length: int,
        width: int,
        num_rows: int,
        device: torch.device | str | None = None,
    ) -> None:
        device = torch.device("cpu" if device is None else device)
        if device.type == "mps":
            device = torch.device("cpu")
        float64 = partial(torch.zeros, dtype=torch.float64, device=device)
        self.reaches, self.width, layers = tuple(reaches), width, len(reaches)
        order = torch.randperm(max_length, generator=torch.Generator().manual_seed(0))
        self.rows = order[:num_rows].sort().values
        self.diagonals = float64((layers, num_heads, 2 * width + 1))
        self.columns = float64((layers, num_heads, max_length))
        self.sampled = float64((layers, num_heads, len(self.rows), max_length))
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

    def mix(self, layer: int, attention: DynamicAttention, value: Tensor) -> Tensor:
        """Add the attention of one layer of one batch, and mix the values with it.

        Args:
            layer: Number of the layer.
            attention: Its attention.
            value: (B, H, T, h).

        Returns:
            (B, T, H, h).
        """
        mixed = value.new_empty(value.shape[0], value.shape[2], value.shape[1], value.shape[3])
        real = None if attention.mask is None else attention.mask.bool()
        for first, chunk in attention.chunks():
            last = first + chunk.shape[2]
            mixed[:, first:last] = apply_attention(chunk, value)
            if real is not None:  # a fill, because what stands at padding may be NaN
                chunk.masked_fill_(~(real[:, None, first:last, None] & real[:, None, None, :]), 0.0)
            self._add(layer, first, chunk)
        return mixed

    def _add(self, layer: int, first: int, chunk: Tensor) -> None:
        """Add some rows of a batch, (B, H, rows, t), 0 at padding. Sums inside a chunk are in its own dtype."""
        device, length = self.columns.device, chunk.shape[3]
        bands = row_bands(chunk, first, self.width).sum(dim=(0, 2))
        self.diagonals[layer] += bands.to(device, torch.float64)
        self.columns[layer, :, :length] += chunk.sum(dim=(0, 2)).to(device, torch.float64)
        places = ((self.rows >= first) & (self.rows < first + chunk.shape[2])).nonzero().flatten()
        if len(places) > 0:
            sampled = chunk[:, :, (self.rows[places] - first).to(chunk.device)].sum(dim=0)
            self.sampled[layer, :, places.to(device), :length] += sampled.to(device, torch.float64)

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Add up what all processes gathered. Every process must call it, one without sequences too.

        Args:
            all_reduce: Sums a tensor over processes and returns the sum.
        """
        for name in ("diagonals", "columns", "sampled", "pair_counts", "num_sequences"):
            setattr(self, name, all_reduce(getattr(self, name)))

    def check(self) -> None:
        """Look for what no constants can be made of.

        Raises:
            CalibrationError: When no sequence was added, or a sum is not finite; it names the first such layer.
        """
        if self.num_sequences == 0:
            raise CalibrationError(
                "calibration saw no sequence with a real token: the batches are empty. Pass at least one batch of "
                "input_ids with an attention_mask that has ones."
            )
        finite = self.columns.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            raise CalibrationError(
                f"the attention of layer {finite.index(False)} is NaN or infinite: the encoder's weights or its "
                "precision are at fault. Check the checkpoint, and calibrate in 32-bit precision."
            )

    def sums(self, layer: int) -> BandSums:
        """What the fit of one layer depends on."""
        return band_sums(self.diagonals[layer], self.columns[layer], self.pair_counts, self.reaches[layer])
