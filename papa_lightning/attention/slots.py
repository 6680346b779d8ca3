"""Rows and columns of the constants that the tokens of a batch belong to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from papa_lightning.attention.dynamic import DynamicAttention


@dataclass(frozen=True, eq=False)
class Slots:
    """Slots of the tokens of a batch, where these differ from the tokens' places in the tensor.

    Constants, position biases and sums are indexed by slot. A mixer gets the tokens in the order of their slots, and
    its result is put back in the order of the batch, so kinds of attention need not know about slots.

    Args:
        tokens: (B, S), index of the token in each slot; arbitrary in an empty slot.
        places: (B, T), slot of each token; arbitrary for padding.
        mask: (B, S), true where a slot has a real token.
        real: (B, T), mask of the batch, true for a real token.

    Example:
        >>> slots = slots_from_first(torch.tensor([[False, True, True]]))
        >>> slots.tokens, slots.mask
        (tensor([[1, 2, 0]]), tensor([[ True,  True, False]]))
    """

    tokens: Tensor
    places: Tensor
    mask: Tensor
    real: Tensor

    def arrange(self, attention: DynamicAttention) -> DynamicAttention:
        """The attention of the tokens in the order of their slots."""
        bias = attention.bias
        if bias is not None:
            length = attention.query.shape[2]
            heads = bias.shape[1] if bias.dim() == 4 else 1
            bias = _pick_pairs(bias.expand(self.tokens.shape[0], heads, length, length), self.tokens)
        query, key = self.fill(attention.query), self.fill(attention.key)
        return replace(attention, query=query, key=key, mask=self.mask, bias=bias, slots=self)

    def fill(self, tensor: Tensor) -> Tensor:
        """(B, heads, T, h) as (B, heads, S, h)."""
        return _pick(tensor, self.tokens, dim=2)

    def read(self, mixed: Tensor) -> Tensor:
        """(B, S, H, h) as (B, T, H, h)."""
        return _pick(mixed, self.places, dim=1)

    def read_pairs(self, matrices: Tensor) -> Tensor:
        """(B, H, S, S) as (B, H, T, T)."""
        return _pick_pairs(matrices, self.places)


def slots_from_first(mask: Tensor, numbered: Tensor | None = None) -> Slots:
    """Slots that count from the first real token of each sequence; tokens before it follow behind the others.

    Args:
        mask: (B, T) boolean, true for a real token. Holes keep their distance from the first real token.
        numbered: (B, T) boolean, tokens whose first one gets the first slot; None takes the real ones.
    """
    order = torch.arange(mask.shape[1], device=mask.device)
    first = (mask if numbered is None else numbered).int().argmax(dim=1, keepdim=True)
    length = order[-1:] + 1  # a tensor: ONNX has no remainder by a size that is not known
    tokens, places = order + first, order - first
    tokens, places = tokens - length * (tokens >= length), places + length * (places < 0)
    return Slots(tokens, places, mask.gather(1, tokens), mask)


def slots_at(places: Tensor, mask: Tensor, length: int) -> Slots:
    """Slots from a given slot of each token.

    Args:
        places: (B, T), slot of each real token, different within a sequence.
        mask: (B, T) boolean, true for a real token.
        length: S, number of slots.
    """
    order = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    target = places.where(mask, length)  # padding has no slot: it goes to one more, which is cut off
    tokens = order.new_zeros(mask.shape[0], length + 1).scatter(1, target, order)
    filled = mask.new_zeros(mask.shape[0], length + 1).scatter(1, target, mask)
    return Slots(tokens[:, :length], places.where(mask, 0), filled[:, :length], mask)


def _pick(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Entries along a dimension of a tensor (B, ...), by an index (B, n) of each sequence."""
    shape = [1] * tensor.dim()
    shape[0], shape[dim] = index.shape
    sizes = [-1 if own in (0, dim) else size for own, size in enumerate(tensor.shape)]
    return tensor.gather(dim, index.view(shape).expand(sizes))


def _pick_pairs(matrices: Tensor, index: Tensor) -> Tensor:
    """Rows and columns of matrices (B, heads, T, T), by an index (B, n)."""
    return _pick(_pick(matrices, index, dim=2), index, dim=3)
