"""One matrix product for the heads of several linear layers whose weights learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        (B, T, heads x h), once differentiable.
    """
    index = head_index(heads, hidden_states.device)
    given = (*weights, *(biases or ()))
    made: Tensor = _JoinedLinear.apply(hidden_states, index, size, len(weights), *given)  # type: ignore[no-untyped-call]
    return made


class _JoinedLinear(torch.autograd.Function):
    """See :func:`joined_linear`; under autocast all products are in its dtype, as those of a linear layer are."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, index: Tensor, size: int, layers: int, *parameters: Tensor) -> Tensor:
        """The output; parameters are all weights, then all biases."""
        weight = _rows(parameters[:layers], size, index)
        bias = _rows(parameters[layers:], size, index) if len(parameters) > layers else None
        device = hidden_states.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(hidden_states, weight, index)
        ctx.size, ctx.rows = size, [len(one) for one in parameters[:layers]]
        with torch.autocast(device, enabled=False):
            return F.linear(hidden_states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input, and of the whole weights and biases; those of rows that took no part are 0."""
        hidden_states, weight, index = ctx.saved_tensors
        asked = ctx.needs_input_grad
        layers, by_row = len(ctx.rows), grad.flatten(0, -2)
        own: list[Tensor | None] = [None] * (len(asked) - 4)
        with torch.autocast(grad.device.type, enabled=False):
            if any(asked[4 : 4 + layers]):
                own[:layers] = _whole(by_row.mT @ hidden_states.flatten(0, -2), ctx.size, index, ctx.rows)
            if any(asked[4 + layers :]):
                own[layers:] = _whole(by_row.sum(0), ctx.size, index, ctx.rows)
            before = grad @ weight if asked[0] else None
        return before, None, None, None, *own


def _rows(parts: Sequence[Tensor], size: int, index: Tensor) -> Tensor:
    """The rows of the heads of an index, of tensors one after the other."""
    by_head = torch.unflatten(torch.cat(list(parts)), 0, (-1, size))
    return by_head.index_select(0, index).flatten(0, 1)


def _whole(rows: Tensor, size: int, index: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The inverse of :func:`_rows`, with 0 elsewhere."""
    whole = rows.new_zeros(sum(lengths) // size, size, *rows.shape[1:])
    whole.index_copy_(0, index, torch.unflatten(rows, 0, (-1, size)))
    return list(torch.split_with_sizes(whole.flatten(0, 1), list(lengths)))
