"""One matrix product for the heads of several linear layers whose weights learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from papa_lightning.attention.head_slices import head_index


def joined_linear(
    hidden_states: Tensor,
    heads: tuple[int, ...],
    size: int,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
) -> Tensor:
    """The outputs of some heads of linear layers, side by side: ``x W^T + b`` with the rows of these heads.

    Autograd of rows that are taken out of each weight and bias would call several times as many functions, which takes
    longer than the products where batches are small.

    Args:
        hidden_states: x, (B, T, hidden).
        heads: The heads, by their numbers in all layers one after the other.
        size: h, size of a head.
        weights: Weights of the layers, (heads of the layer x h, hidden) each.
        biases: Their biases, (heads of the layer x h) each, or None.

    Returns:
        (B, T, heads x h).
    """
    index = head_index(heads, hidden_states)
    given = (*weights, *(biases or ()))
    rows: tuple[Tensor, ...] = _HeadRows.apply(index, size, len(weights), *given)  # type: ignore[no-untyped-call]
    return F.linear(hidden_states, *rows)


class _HeadRows(torch.autograd.Function):
    """The rows of the heads of an index, of all weights and, if there are any, of all biases."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, size: int, layers: int, *parameters: Tensor) -> tuple[Tensor, ...]:
        """The rows; parameters are all weights, then all biases."""
        ctx.save_for_backward(index)
        ctx.size, ctx.lengths = size, [len(one) for one in parameters[:layers]]
        ctx.set_materialize_grads(False)
        groups = (parameters[:layers], parameters[layers:])
        return tuple(_rows(group, size, index) for group in groups if group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the whole weights and biases; those of rows that took no part are 0."""
        (index,), found = ctx.saved_tensors, list[Tensor | None]()
        for grad in grads:
            found += [None] * len(ctx.lengths) if grad is None else _whole(grad, ctx.size, index, ctx.lengths)
        return None, None, None, *found


def _rows(parts: Sequence[Tensor], size: int, index: Tensor) -> Tensor:
    """The rows of the heads of an index, of tensors one after the other."""
    by_head = torch.unflatten(torch.cat(list(parts)), 0, (-1, size))
    return by_head.index_select(0, index).flatten(0, 1)


def _whole(rows: Tensor, size: int, index: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The inverse of :func:`_rows`, with 0 elsewhere."""
    whole = rows.new_zeros(sum(lengths) // size, size, *rows.shape[1:])
    whole.index_copy_(0, index, torch.unflatten(rows, 0, (-1, size)))
    return list(torch.split_with_sizes(whole.flatten(0, 1), list(lengths)))
