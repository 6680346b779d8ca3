"""The attention that an encoder computes from its input, described but not yet computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from papa_lightning.attention.functional import attention_probabilities, dynamic_attention

if TYPE_CHECKING:
    from papa_lightning.attention.slots import Slots

#: How many attention probabilities exist at a time: 32 MB in float32.
CHUNK = 2**23


@dataclass(frozen=True, eq=False)
class DynamicAttention:
    """The attention of the dynamic heads of one layer for one batch: nothing is computed until it is asked for.

    ``A = softmax(scaling * Q K^T + bias)`` over the real keys, see
    :func:`~papa_lightning.attention.functional.attention_probabilities`. It can be had whole, in rows (for sequences
    whose matrices would not fit in memory), or multiplied with values (by PyTorch's fused kernel, never built).

    Args:
        query: (B, dynamic heads, T, h).
        key: (B, dynamic heads, T, h).
        mask: (B, T), true for a real token, or None. It holds for the whole layer, constant heads too.
        scaling: Factor of the scores.
        bias: What the encoder adds to the scores, or where they may look.
        slots: How the tokens were put in order, where they do not stand as in the batch; T is then the number of slots.

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
        """Go through the rows.

        Args:
            size: How many probabilities a chunk may have, None for :data:`CHUNK`; it has one row at least.

        Yields:
            The number of the first row, and the probabilities (B, dynamic heads, rows, T), which are the receiver's to
            overwrite.
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
    """What mixes the values of an observed layer out of rows of its attention, instead of whole matrices.

    Args:
        mix: From the attention and the values (B, H, T, h) to the mixed values (B, T, H, h).
    """

    mix: Callable[[DynamicAttention, Tensor], Tensor]
