"""Attention that an encoder computes from its input: the heads that need it, the matrices, the slots of its tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from papa_lightning.attention.functional import attention_probabilities, dynamic_attention
from papa_lightning.attention.head_slices import take_heads

#: Number of attention probabilities that exist at a time: 32 MB in float32.
CHUNK = 2**23


class DynamicHeads:
    """Heads of one layer that currently need a query and a key.

    The projections and the mixer of a layer share one such object, so that both change at once when constants arrive.
    It is no module, so the state dict has nothing of it. Threads share it too: it keeps nothing of a single forward.

    Args:
        num_heads: H, number of heads.

    Example:
        >>> heads = DynamicHeads(3)
        >>> heads.dynamic
        (0, 1, 2)
        >>> heads.choose([1])
        >>> heads.suspended = True
        >>> heads.dynamic
        (0, 1, 2)
    """

    def __init__(self, num_heads: int) -> None:
        self.num_heads = num_heads
        self._suspended_by: int | None = None
        self._dynamic = tuple(range(num_heads))

    @property
    def suspended(self) -> bool:
        """Whether every head counts as dynamic, for calibration, in the thread that set it; others are unaffected."""
        return self._suspended_by is not None and runs_in(self._suspended_by)

    @suspended.setter
    def suspended(self, suspended: bool) -> None:
        self._suspended_by = threading.get_ident() if suspended else None

    @property
    def dynamic(self) -> tuple[int, ...]:
        """The heads with a query and a key, ascending."""
        return tuple(range(self.num_heads)) if self.suspended else self._dynamic

    def choose(self, heads: Sequence[int]) -> None:
        """Set the dynamic heads, in ascending order."""
        self._dynamic = tuple(heads)

    @property
    def all_dynamic(self) -> bool:
        """True when the layer is the layer of the original encoder."""
        return len(self.dynamic) == self.num_heads

    def groups(self, size: int) -> tuple[int, ...]:
        """The groups of ``size`` neighbouring heads that have a dynamic head, ascending: the key heads in use.

        Example:
            >>> heads = DynamicHeads(4)
            >>> heads.choose([0, 1])
            >>> heads.groups(2)
            (0,)
        """
        return tuple(dict.fromkeys(head // size for head in self.dynamic))


def runs_in(thread: int) -> bool:
    """Whether a thread, by its ``threading.get_ident()``, is the current one; always true in a compiled graph.

    Example:
        >>> runs_in(threading.get_ident())
        True
    """
    return torch.compiler.is_compiling() or thread == threading.get_ident()


@dataclass(frozen=True, eq=False)
class DynamicAttention:
    """Attention of the dynamic heads of one layer for one batch, computed on request.

    It is that of :func:`~papa_lightning.attention.functional.attention_probabilities`, whole, in rows (where matrices
    would not fit in memory), or multiplied with values by PyTorch's fused kernel.

    Args:
        query: (B, dynamic heads, T, h).
        key: (B, dynamic heads, T, h).
        mask: (B, T), true for a real token, or None; also for the constant heads of the layer.
        scaling: Factor of the scores.
        bias: Bias that the encoder adds to the scores, or a boolean one, true where a query may look.
        slots: Slots of the tokens, where they differ from their places in the tensor, for a mixer or
            :class:`RowMixing` that reads them; others get the tokens in the order of their slots, and None.
        fused: The mask as a fused kernel of a device reads it, where that is known; only without a bias.
        value_heads: The heads in the order of the values, for a mixer that reorders values; None: ascending.

    Example:
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
    fused: Tensor | None = None
    value_heads: tuple[int, ...] | None = None

    def matrices(self) -> Tensor:
        """The probabilities, (B, dynamic heads, T, T), float32 or float64."""
        return attention_probabilities(self.query, self.key, self.mask, self.scaling, self.bias)

    def chunks(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Iterate over chunks of rows.

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
        """Mixed values (B, T, dynamic heads, h) of values (B, dynamic heads, T, h), by PyTorch's fused kernel."""
        return dynamic_attention(self.query, self.key, value, self.mask, self.scaling, dropout, self.bias, self.fused)

    def values_of(self, value: Tensor, heads: Sequence[int], dim: int = 1) -> Tensor:
        """The values of some heads, ascending, of values of all, which are along a dimension."""
        if self.value_heads is not None:
            first, number = self.value_heads.index(heads[0]), len(heads)
            if self.value_heads[first : first + number] == tuple(heads):
                return value.narrow(dim, first, number)
            heads = [self.value_heads.index(head) for head in heads]
        return take_heads(value, heads, dim)


@dataclass(frozen=True)
class RowMixing:
    """Mixing of the values of an observed layer that takes rows of its attention instead of whole matrices.

    Args:
        mix: Function of the attention and the values (B, H, T, h) that returns mixed values (B, T, H, h).
        reads_slots: Whether it takes the tokens in the order of the batch, with their slots.
    """

    mix: Callable[[DynamicAttention, Tensor], Tensor]
    reads_slots: bool = False


@dataclass(frozen=True, eq=False)
class Slots:
    """Slots of the tokens of a batch, where these differ from the tokens' places in the tensor.

    A mixer gets tokens in the order of their slots, by which constants, biases and sums are indexed, and its result is
    put back in the order of the batch.

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
            length, heads = attention.query.shape[2], bias.shape[1] if bias.dim() == 4 else 1
            bias = _pick_pairs(bias.expand(self.tokens.shape[0], heads, length, length), self.tokens)
        query, key = self.fill(attention.query), self.fill(attention.key)
        return replace(attention, query=query, key=key, mask=self.mask, bias=bias, fused=None)

    def fill(self, tensor: Tensor) -> Tensor:
        """(B, heads, T, h) as (B, heads, S, h)."""
        return _pick(tensor, self.tokens, dim=2)

    def read(self, mixed: Tensor) -> Tensor:
        """(B, S, H, h) as (B, T, H, h)."""
        return _pick(mixed, self.places, dim=1)

    def read_pairs(self, matrices: Tensor) -> Tensor:
        """(B, H, S, S) as (B, H, T, T)."""
        return _pick_pairs(matrices, self.places)

    @property
    def number(self) -> int:
        """S, the number of slots."""
        return self.tokens.shape[1]


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
    """Slots (B, S), with S the length, from the slot (B, T) of each real token, for a mask (B, T) of these."""
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
