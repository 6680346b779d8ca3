"""Running sums for compact constants, taken from attention as it passes: no matrix for each head is ever kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from papa_lightning.attention import DynamicAttention, Reach
from papa_lightning.attention.functional import apply_attention
from papa_lightning.calibration.averages import RunningSums, check_finite
from papa_lightning.calibration.compact.fit import BandSums, band_sums, row_bands


class CompactAverages(RunningSums):
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

    added = ("diagonals", "columns", "sampled", *RunningSums.added)

    def __init__(
        self,
        reaches: Sequence[Reach],
        num_heads: int,
        max_length: int,
        width: int,
        num_rows: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(max_length, device)
        self.reaches, self.width, layers = tuple(reaches), width, len(reaches)
        order = torch.randperm(max_length, generator=torch.Generator().manual_seed(0))
        self.rows = order[:num_rows].sort().values
        self.diagonals = self.zeros(layers, num_heads, 2 * width + 1)
        self.columns = self.zeros(layers, num_heads, max_length)
        self.sampled = self.zeros(layers, num_heads, len(self.rows), max_length)

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

    def check(self) -> None:
        """Look for what no constants can be made of.

        Raises:
            CalibrationError: When no sequence was added, or a sum is not finite; it names the first such layer.
        """
        self.check_sequences()
        self.check_finite()

    def check_finite(self) -> None:
        """Look for NaN and infinity.

        Raises:
            CalibrationError: Names the first layer that has one.
        """
        check_finite(self.columns)

    def sums(self, layer: int) -> BandSums:
        """What the fit of one layer depends on."""
        return band_sums(self.diagonals[layer], self.columns[layer], self.pair_counts, self.reaches[layer])
