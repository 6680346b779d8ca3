"""Arithmetic of a layer: how much faster a kind of attention allows it to be.

Multiply-accumulates per token, layer and channel. A block of BERT's form costs 4 d for queries, keys, values and the
output, 2 i for the feed-forward network (i = 4 d), T for the scores and T for the product with the values: 12 d + 2 T.
Embeddings, normalisations, softmax and everything that is not arithmetic do not count.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Sizes of a layer that determine its cost.

    Args:
        hidden: d, the hidden size.
        inner: i, the inner size of the feed-forward network.
        length: T, tokens of a sequence.
        positions: P, number of relative positions that queries and keys are multiplied with (DeBERTa), together.

    Example:
        >>> round(Block(768, 3072, 128).speed(saved=2 * 768 + 128), 2)
        1.21
    """

    hidden: int
    inner: int
    length: int
    positions: int = 0

    @property
    def dense(self) -> int:
        """Multiply-accumulates per token and channel with all heads dynamic."""
        return 4 * self.hidden + 2 * self.inner + 2 * self.length + self.positions

    @property
    def queries(self) -> int:
        """Multiply-accumulates per token and channel for queries, keys and scores."""
        return 2 * self.hidden + self.length + self.positions

    def speed(self, saved: float) -> float:
        """Speed relative to the dynamic layer, when a kind saves so many multiply-accumulates per token and channel."""
        return self.dense / (self.dense - saved)
