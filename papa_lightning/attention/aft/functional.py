"""Attention-free mixing (AFT) as pure functions: full, simple and local; source: Zhai et al. 2021, arXiv 2105.14103.

Inside, everything is float32 (float64 for float64 input), also under autocast; rows without any allowed key are 0. A
mask (B, T) is true for a real token, and may have holes. *causal*: a row looks at itself and the rows before it.
"""

import torch
from torch import Tensor

from papa_lightning.attention.aft.band import Band, banded_mean
from papa_lightning.attention.aft.checks import check_band, check_bias, check_rows
from papa_lightning.attention.aft.dispatch import fused
from papa_lightning.attention.aft.means import (
    by_group,
    finite_maximum,
    gated,
    join_groups,
    recomputed,
    rows_with_keys,
    weighted_mean,
)
from papa_lightning.attention.functional import accumulation_dtype
from papa_lightning.checks import whole
from papa_lightning.kernels import usable


def aft_full(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_bias: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    chunk: int = 128,
) -> Tensor:
    """AFT-full, ``sigmoid(Q_t) * sum_t' exp(K_t' + w_tt') V_t' / sum_t' exp(K_t' + w_tt')``.

    In time O(T^2 d), as products of (chunk x T) by (T x B d) matrices; in memory O(T^2 + B T d), in the backward pass
    too, because the chunks of rows are computed again there. No (B, T, T, d) tensor exists.

    Args:
        query: (B, T, d).
        key: (B, T, d).
        value: (B, T, d).
        position_bias: w, (T', T') with T' at least T, or (H, T', T') for H groups of d / H neighbouring channels. Minus
            infinity: not allowed.
        mask: (B, T), true for a real token, or None.
        causal: Only keys at or before the row.
        chunk: Number of rows that are computed at a time.

    Returns:
        (B, T, d) in the dtype of ``value``.

    Raises:
        PapaError: When shapes do not fit.

    Example:
        >>> x = torch.tensor([[[0.0], [2.0]]])
        >>> w = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])
        >>> aft_full(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), x, w).flatten()
        tensor([0.5000, 0.0000])
    """
    check_rows(query, key, value, mask)
    whole(1)("chunk", chunk)
    length = query.shape[1]
    bias = check_bias(position_bias, length, query.shape[-1])[:, :length, :length]
    if usable(query, key, value, bias):
        return fused(query, key, value, mask, causal, groups=bias.shape[0], weight=bias)
    with torch.autocast(query.device.type, enabled=False):
        bias = bias.to(accumulation_dtype(query.dtype))
        keys, values = by_group(key, value, mask, bias.shape[0])
        rows = rows_with_keys(mask, causal)
        chunks, start = [], 0
        for piece in torch.split(bias, chunk, dim=1):
            stop = start + piece.shape[1]
            some = None if rows is None else rows[:, :, start:stop]
            seen = slice(stop if causal else length)
            own = (query[:, start:stop], keys[:, :, seen], values[:, :, seen], piece[..., seen], some, value.dtype)
            chunks.append(recomputed(_chunk_of_rows, *own, start if causal else None))
            start = stop
        return torch.cat(chunks, dim=1)


def _chunk_of_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    rows: Tensor | None,
    dtype: torch.dtype,
    first: int | None,
) -> Tensor:
    """(B, rows, d): some rows; in causal mode with the number of the first of them, and the keys up to the last."""
    if first is not None:
        bias = bias.masked_fill(torch.ones_like(bias[0], dtype=torch.bool).triu(first + 1), -torch.inf)
    scaled = torch.exp(keys - finite_maximum(keys, dim=2))
    weights = torch.exp(bias - finite_maximum(bias, dim=-1))
    denominator = torch.einsum("hij,bhjd->bhid", weights, scaled)
    numerator = torch.einsum("hij,bhjd->bhid", weights, scaled * values)
    mean = weighted_mean(numerator, denominator, keys, values, lambda group, row: bias[group, row], rows)
    return gated(query, join_groups(mean), dtype)


def aft_simple(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """AFT-simple, AFT-full without position biases: ``sigmoid(Q_t) * sum_t' softmax_t'(K)_t' V_t'``, in O(T d).

    The causal form is a running sum, whose maximum grows along the sequence. Arguments, result and errors are those of
    :func:`aft_full`.

    Example:
        >>> x = torch.tensor([[[0.0], [2.0]]])
        >>> aft_simple(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), x).flatten()
        tensor([0.5000, 0.5000])
        >>> aft_simple(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), x, causal=True).flatten()
        tensor([0.0000, 0.5000])
    """
    check_rows(query, key, value, mask)
    if usable(query, key, value):
        return fused(query, key, value, mask, causal)
    return recomputed(simple_mixture, query, key, value, mask, causal)


def simple_mixture(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """AFT-simple as :func:`aft_simple`, but intermediate results are kept for the backward pass."""
    with torch.autocast(query.device.type, enabled=False):
        keys, values = by_group(key, value, mask, 1)
        if causal:
            mean = banded_mean(keys, values, Band(keys.new_zeros(1, 1, 0), 0), mask, causal)
        else:
            weights = torch.exp(keys - finite_maximum(keys, dim=2))
            total = weights.sum(dim=2, keepdim=True)  # at least 1 where there is a key: no underflow
            mean = (weights * values).sum(dim=2, keepdim=True) / torch.where(total > 0, total, 1.0)
        return gated(query, join_groups(mean), value.dtype)


def aft_local(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_bias: Tensor,
    window: int,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """AFT-local: AFT-full with ``w_tt' = 0`` (not minus infinity) where ``|t - t'| >= s``, in O(T s d).

    ``window`` is s: 0 is AFT-simple, T or more is AFT-full. The other arguments, the result and the errors are those of
    :func:`aft_full`. Only the band of ``position_bias`` is read, but its gradient has its shape; :func:`aft_banded`
    takes the band alone.

    Example:
        >>> x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(aft_local(x, x, x, torch.ones(5, 5), window=0), aft_simple(x, x, x))
        True
    """
    check_rows(query, key, value, mask)
    whole(0)("window", window)
    length = query.shape[1]
    bias = check_bias(position_bias, length, query.shape[-1])
    last = 0 if causal else min(window, length) - 1
    first = 1 - min(window, length)
    offsets = torch.arange(first, last + 1 if window else first, device=bias.device)
    others = torch.arange(length, device=bias.device)[:, None] + offsets
    inside = (others >= 0) & (others < length)
    index = others.clamp(0, length - 1).expand(bias.shape[0], -1, -1)
    band = bias[:, :length].gather(-1, index).masked_fill(~inside, 0.0)
    return aft_banded(query, key, value, band, first, mask, causal)


def aft_banded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Tensor,
    first: int,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """AFT-full with a position bias that is given as a band, ``w[t, t + first + j] = band[t, j]`` and 0 elsewhere.

    In O(T n d) for a band (T, n), or (H, T, n) for H groups of d / H neighbouring channels, or (H, 1, n) when all rows
    have the same; ``first`` is the offset of its first column. Entries for keys before the first or after the last one
    are not used. The other arguments, the result and the errors are those of :func:`aft_full`.

    Example:
        >>> x = torch.tensor([[[0.0], [2.0], [4.0]]])
        >>> nothing = torch.zeros(1, 3, 1)
        >>> aft_banded(nothing, nothing, x, torch.full((3, 1), 1000.0), first=0).flatten()  # every row looks at itself
        tensor([0., 1., 2.])
    """
    check_rows(query, key, value, mask)
    band = check_band(band, query.shape[1], query.shape[-1])
    if usable(query, key, value, band):
        return fused(query, key, value, mask, causal, groups=band.shape[0], weight=band, first=first)
    return recomputed(banded_mixture, query, key, value, band, first, mask, causal)


def banded_mixture(
    query: Tensor, key: Tensor, value: Tensor, band: Tensor, first: int, mask: Tensor | None, causal: bool
) -> Tensor:
    """AFT with a band (H, T, n) as :func:`aft_banded`, but intermediate results are kept for the backward pass."""
    with torch.autocast(query.device.type, enabled=False):
        band = band.to(accumulation_dtype(query.dtype))
        keys, values = by_group(key, value, mask, band.shape[0])
        mean = banded_mean(keys, values, Band(band, first), mask, causal)
        return gated(query, join_groups(mean), value.dtype)
