"""Attention matrices in pieces of some rows, for sequences whose whole matrices would not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from papa_lightning.attention.functional import attention_probabilities

#: How many attention probabilities exist at a time: 32 MB in float32.
CHUNK = 2**23


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """The attention of one layer for one batch, computed as its rows are asked for.

    Args:
        query: (B, H, T, h).
        key: (B, H, T, h).
        mask: (B, T), true for a real token, or None.
        scaling: Factor of the scores.
        bias: As in :func:`~papa_lightning.attention.functional.attention_probabilities`.

    Example:
        >>> import torch
        >>> rows = AttentionRows(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), None, 1.0)
        >>> [(start, tuple(chunk.shape)) for start, chunk in rows.chunks(size=12)]
        [(0, (1, 1, 3, 4)), (3, (1, 1, 1, 4))]
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    bias: Tensor | None = None

    def chunks(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Go through the rows.

        Args:
            size: How many probabilities a chunk may have, None for :data:`CHUNK`; it has one row at least.

        Yields:
            The number of the first row, and the probabilities (B, H, rows, T), which are the receiver's to overwrite.
        """
        batch, heads, length, _ = self.query.shape
        step = max(1, (CHUNK if size is None else size) // max(1, batch * heads * self.key.shape[2]))
        for start in range(0, length, step):
            bias = self.bias
            if bias is not None and bias.dim() > 1 and bias.shape[-2] > 1:
                bias = bias[..., start : start + step, :]
            query = self.query[:, :, start : start + step]
            yield start, attention_probabilities(query, self.key, self.mask, self.scaling, bias)


@dataclass(frozen=True)
class RowMixing:
    """What mixes the values of an observed layer out of rows of its attention, instead of whole matrices.

    Args:
        mix: From the rows and the values (B, H, T, h) to the mixed values (B, T, H, h).
    """

    mix: Callable[[AttentionRows, Tensor], Tensor]
