"""Which row and column of the constants each token of a batch has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from papa_lightning.attention.dynamic import DynamicAttention


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of the tokens of a batch, where these are not the tokens' places in the tensor.

    Constants, position biases and sums go by the slot. What mixes the tokens sees them in the order of their slots, and
    its result is put back; so no kind of attention has to know about it.

    Args:
        tokens: (B, S), the token that stands in each slot; any one where none does.
        places: (B, T), the slot of each token; any one for padding.
        mask: (B, S), true where a real token stands.
        real: (B, T), true for a real token: the mask of the batch.

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
    """Slots that count from the first real token of each sequence; what stands before it goes behind the others.

    Args:
        mask: (B, T) boolean, true for a real token. Holes stay where they are, seen from the first real token.
        numbered: (B, T) boolean, the tokens of which the first has the first slot; None: the real ones.
    """
    order = torch.arange(mask.shape[1], device=mask.device)
    first = (mask if numbered is None else numbered).int().argmax(dim=1, keepdim=True)
    length = order[-1:] + 1  # a tensor: ONNX has no remainder by a size that is not known
    tokens, places = order + first, order - first
    tokens, places = tokens - length * (tokens >= length), places + length * (places < 0)
    return Slots(tokens, places, mask.gather(1, tokens), mask)


def slots_at(places: Tensor, mask: Tensor, length: int) -> Slots:
    """Slots that are given for every token.

    Args:
        places: (B, T), the slot of each real token; a sequence has none twice.
        mask: (B, T) boolean, true for a real token.
        length: S, more than any slot.
    """
    order = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    target = places.where(mask, length)  # padding has no slot: it goes to one more, which is cut off
    tokens = order.new_zeros(mask.shape[0], length + 1).scatter(1, target, order)
    filled = mask.new_zeros(mask.shape[0], length + 1).scatter(1, target, mask)
    return Slots(tokens[:, :length], places.where(mask, 0), filled[:, :length], mask)


def _pick(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Entries of a dimension of a tensor (B, ...), other ones for each sequence."""
    shape = [1] * tensor.dim()
    shape[0], shape[dim] = index.shape
    sizes = [-1 if own in (0, dim) else size for own, size in enumerate(tensor.shape)]
    return tensor.gather(dim, index.view(shape).expand(sizes))


def _pick_pairs(matrices: Tensor, index: Tensor) -> Tensor:
    """The same for rows and columns of (B, heads, T, T)."""
    return _pick(_pick(matrices, index, dim=2), index, dim=3)
