"""Attention that an encoder computes from its input, computed on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from papa_lightning.attention.functional import attention_probabilities, dynamic_attention

if TYPE_CHECKING:
    from papa_lightning.attention.slots import Slots

#: Number of attention probabilities that exist at a time: 32 MB in float32.
CHUNK = 2**23


@dataclass(frozen=True, eq=False)
class DynamicAttention:
    """Attention of the dynamic heads of one layer for one batch, computed on request.

    ``A = softmax(scaling * Q K^T + bias)`` over the real keys, see
    :func:`~papa_lightning.attention.functional.attention_probabilities`. It can be computed whole, in rows (for
    sequences whose matrices would not fit in memory), or multiplied with values by PyTorch's fused kernel.

    Args:
        query: (B, dynamic heads, T, h).
        key: (B, dynamic heads, T, h).
        mask: (B, T), true for a real token, or None; also for the constant heads of the layer.
        scaling: Factor of the scores.
        bias: Bias that the encoder adds to the scores, or a boolean one, true where a query may look.
        slots: Order of the tokens, where it differs from that of the batch; T is then the number of slots.

    Example:
        >>> import torch
        >>> attention = DynamicAttention(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), None, 1.0)
        >>> attention.matrices()[0, 0, 0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        >>> [(start, tuple(chunk.shape)) for start, chunk in attention.chunks(size=12)]
        [(0, (1, 1, 3, 4)), (3, (1, 1, 1, 4))]
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    bias: Tensor | None = None
    slots: Slots | None = None

    def matrices(self) -> Tensor:
        """The probabilities, (B, dynamic heads, T, T), float32 or float64."""
        return attention_probabilities(self.query, self.key, self.mask, self.scaling, self.bias)

    def chunks(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Iterate over the rows.

        Args:
            size: Largest number of probabilities of a chunk, but at least one row; None takes :data:`CHUNK`.

        Yields:
            The number of the first row, and the probabilities (B, dynamic heads, rows, T), which may be overwritten.
        """
        batch, heads, length, _ = self.query.shape
        step = max(1, (CHUNK if size is None else size) // max(1, batch * heads * self.key.shape[2]))
        for start in range(0, length, step):
            bias = self.bias
            if bias is not None and bias.dim() > 1 and bias.shape[-2] > 1:
                bias = bias[..., start : start + step, :]
            query = self.query[:, :, start : start + step]
            yield start, attention_probabilities(query, self.key, self.mask, self.scaling, bias)

    def mix(self, value: Tensor, dropout: float = 0.0) -> Tensor:
        """See :func:`~papa_lightning.attention.functional.dynamic_attention`.

        Args:
            value: (B, dynamic heads, T, h).
            dropout: Attention dropout.

        Returns:
            (B, T, dynamic heads, h).
        """
        return dynamic_attention(self.query, self.key, value, self.mask, self.scaling, dropout, self.bias)


@dataclass(frozen=True)
class RowMixing:
    """Mixing of the values of an observed layer that takes rows of its attention instead of whole matrices.

    Args:
        mix: Function of the attention and the values (B, H, T, h) that returns mixed values (B, T, H, h).
    """

    mix: Callable[[DynamicAttention, Tensor], Tensor]
