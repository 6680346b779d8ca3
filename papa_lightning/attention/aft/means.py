"""Safe exponentials of attention-free mixing, and exact means where sums underflow.

Shapes in this room: H groups of channels that share a position bias w; *keys* (B, H, T, a) in at least float32, minus
infinity where masked; *values* (B, H, T, h), 0 where masked. a is h (a key a channel) or 1 (a key a group).
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from papa_lightning.attention.functional import accumulation_dtype

#: Group (N,) and row (N,) to the logarithms of the position weights of these rows, (N, T); minus infinity: not allowed.
LogWeights: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: Elements of the largest tensor that exact means build at a time.
_ELEMENTS = 2**23


def smallest_sum(dtype: torch.dtype) -> float:
    """Sums below this are redone: terms that underflowed could make up more than a rounding error of them."""
    # A term is lost below 1e-38 in float32: a million of them are less than 1e-6 of a sum of 5e-26.
    return float(torch.finfo(dtype).tiny ** (2 / 3))


def split_groups(tensor: Tensor, groups: int) -> Tensor:
    """(B, T, d) to (B, H, T, d / H)."""
    return torch.unflatten(tensor, -1, (groups, -1)).transpose(1, 2)


def join_groups(tensor: Tensor) -> Tensor:
    """(B, H, T, h) to (B, T, H h)."""
    return tensor.transpose(1, 2).flatten(2)


def gated(query: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """``sigmoid(Q) * mean``, in a dtype."""
    return (torch.sigmoid(query.to(mean.dtype)) * mean).to(dtype)


def masked(tensor: Tensor, mask: Tensor | None, fill: float) -> Tensor:
    """(B, T, d) in at least float32, filled where masked."""
    exact = tensor.to(accumulation_dtype(tensor.dtype))
    return exact if mask is None else exact.masked_fill(~mask.bool()[..., None], fill)


def by_group(key: Tensor, value: Tensor, mask: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """Keys (B, T, H a) and values (B, T, H h) as they are described above."""
    # Before any maximum is taken of keys; values, because a weight of 0 would let NaN through.
    return split_groups(masked(key, mask, -torch.inf), groups), split_groups(masked(value, mask, 0.0), groups)


def finite_maximum(logarithms: Tensor, dim: int) -> Tensor:
    """Maximum along a dimension, kept, without gradient, and finite where everything is masked."""
    top = logarithms.detach().amax(dim, keepdim=True)  # no result depends on what is subtracted
    return top.clamp_min(torch.finfo(top.dtype).min)


def rows_with_keys(mask: Tensor | None, causal: bool) -> Tensor | None:
    """Query rows that have an allowed key, broadcastable to (B, H, T, a); None for all."""
    if mask is None:
        return None
    real = mask.bool()
    seen = real.long().cumsum(dim=1) > 0 if causal else real.any(dim=1, keepdim=True).expand_as(real)
    return seen[:, None, :, None]


def recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """The result of a function whose inner tensors are made again in the backward pass instead of being kept."""
    if not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result


def weighted_mean(
    numerator: Tensor, denominator: Tensor, keys: Tensor, values: Tensor, log_weights: LogWeights, rows: Tensor | None
) -> Tensor:
    """``numerator / denominator``, redone exactly where the denominator underflows; 0 for rows without keys."""
    low = denominator < smallest_sum(denominator.dtype)
    # Rows without keys have a numerator of 0, and so a mean of 0.
    mean = numerator / denominator.masked_fill(low, 1.0)
    redo = low if rows is None else low & rows
    if not redo.any():
        return mean
    entries = redo.nonzero()
    per_key = mean.shape[-1] // denominator.shape[-1]
    pieces = torch.split(entries, max(1, _ELEMENTS // (keys.shape[2] * per_key)))
    exact = torch.cat([recomputed(_exact_means, keys, values, log_weights, piece) for piece in pieces])
    by_key = torch.unflatten(mean, -1, (denominator.shape[-1], per_key))
    return by_key.index_put(entries.unbind(1), exact).flatten(-2)


def _exact_means(keys: Tensor, values: Tensor, log_weights: LogWeights, entries: Tensor) -> Tensor:
    """(N, h / a): the means of N entries (sequence, group, row, key channel), each with a maximum of its own."""
    sequence, group, row, channel = entries.unbind(1)
    logits = keys.transpose(2, 3)[sequence, group, channel] + log_weights(group, row)
    by_key = torch.unflatten(values, -1, (keys.shape[-1], -1)).permute(0, 1, 3, 2, 4)[sequence, group, channel]
    weights = torch.exp(logits - finite_maximum(logits, dim=1))
    total = weights.sum(dim=1, keepdim=True)
    return torch.einsum("nt,ntr->nr", weights, by_key) / torch.where(total > 0, total, 1.0)
