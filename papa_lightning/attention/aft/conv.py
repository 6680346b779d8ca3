"""AFT-conv as pure functions: position biases that depend on the offset alone, over a sequence or over a grid."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from papa_lightning.attention.aft.band import Band, banded_mean
from papa_lightning.attention.aft.checks import check_grid, check_heads, check_kernel
from papa_lightning.attention.aft.dispatch import fused
from papa_lightning.attention.aft.means import (
    by_group,
    finite_maximum,
    gated,
    recomputed,
    rows_with_keys,
    weighted_mean,
)
from papa_lightning.attention.functional import accumulation_dtype
from papa_lightning.kernels import usable


def aft_conv(
    query: Tensor, key: Tensor, value: Tensor, kernel: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """AFT-conv over a sequence: one key a head, and a position bias that depends on the offset alone.

    ``sigmoid(Q) * [conv(e^K V, e^w - 1) + sum e^K V] / [conv(e^K, e^w - 1) + sum e^K]`` for each of H heads, computed
    without the difference, in O(T s d). Entry j of a kernel belongs to the key at ``t + j - (s - 1) // 2``, as in a
    convolution with padding "same"; in causal mode to the key at ``t + j - (s - 1)``, so that the last entry is the
    row's own. Source: Zhai et al. 2021, arXiv 2105.14103.

    Args:
        query: (B, T, H, h).
        key: (B, T, H).
        value: (B, T, H, h).
        kernel: w, (H, s).
        mask: (B, T), true for a real token, or None.
        causal: Only keys at or before the row.

    Returns:
        (B, T, H, h) in the dtype of ``value``.

    Raises:
        PapaError: When shapes do not fit.

    Example:
        >>> x = torch.tensor([0.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
        >>> nothing = torch.zeros_like(x)
        >>> aft_conv(nothing, nothing[..., 0], x, torch.tensor([[0.0, 1000.0, 0.0]])).flatten()  # every row at itself
        tensor([0., 1., 2.])
    """
    check_heads(query, key, value, mask)
    check_kernel(kernel, query.shape[2], dimensions=1)
    if usable(query, key, value, kernel):
        rows, (bias, first) = (query.flatten(2), key, value.flatten(2)), kernel_band(kernel, query.shape[1], causal)
        return fused(*rows, mask, causal, groups=query.shape[2], weight=bias, first=first).view(value.shape)
    return recomputed(conv_mixture, query, key, value, kernel, mask, causal)


def conv_mixture(
    query: Tensor, key: Tensor, value: Tensor, kernel: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    """AFT-conv as :func:`aft_conv`, but intermediate results are kept for the backward pass."""
    bias, first = kernel_band(kernel, query.shape[1], causal)
    with torch.autocast(query.device.type, enabled=False):
        keys, values = by_group(key, value.flatten(2), mask, kernel.shape[0])
        band = Band(bias.to(keys.dtype), first)
        return gated(query, banded_mean(keys, values, band, mask, causal).transpose(1, 2), value.dtype)


def kernel_band(kernel: Tensor, length: int, causal: bool) -> Band:
    """Entries (H, 1, n) of kernels (H, s) for the offsets that some key of a sequence has."""
    size = kernel.shape[1]
    first = 1 - size if causal else -((size - 1) // 2)
    start, stop = max(0, 1 - length - first), min(size, length - first)
    return Band(kernel[:, None, start:stop], first + start)


def aft_conv2d(
    query: Tensor, key: Tensor, value: Tensor, kernel: Tensor, side: int, mask: Tensor | None = None
) -> Tensor:
    """AFT-conv over a square grid whose cells are the tokens, row by row.

    As :func:`aft_conv`, with T = side^2 tokens and kernels (H, s, s) for the offset in both directions, in O(T s^2 d).
    Entry (i, j) of a kernel belongs to the key ``i - (s - 1) // 2`` rows below and ``j - (s - 1) // 2`` columns to the
    right. Arguments, result and errors are those of :func:`aft_conv`; tokens that are no square grid are an error, too.

    Example:
        >>> x = torch.arange(9.0).reshape(1, 9, 1, 1)
        >>> nothing = torch.zeros_like(x)
        >>> aft_conv2d(nothing, nothing[..., 0], x, torch.zeros(1, 3, 3), side=3).flatten()[0]  # half of the mean, 4
        tensor(2.)
    """
    check_heads(query, key, value, mask)
    check_kernel(kernel, query.shape[2], dimensions=2)
    check_grid(side, query.shape[1])
    return recomputed(conv2d_mixture, query, key, value, kernel, side, mask)


def conv2d_mixture(query: Tensor, key: Tensor, value: Tensor, kernel: Tensor, side: int, mask: Tensor | None) -> Tensor:
    """AFT-conv as :func:`aft_conv2d`, but intermediate results are kept for the backward pass."""
    with torch.autocast(query.device.type, enabled=False):
        keys, values = by_group(key, value.flatten(2), mask, kernel.shape[0])
        logs = kernel.to(accumulation_dtype(key.dtype))
        scaled = torch.exp(keys - finite_maximum(keys, dim=2))
        top = finite_maximum(logs.flatten(1), dim=1).clamp_min(0.0)[..., None]
        weights, beyond = torch.exp(logs - top), torch.exp(-top)
        denominator = _grid_sums(scaled, weights, beyond, side)
        numerator = _grid_sums(scaled * values, weights, beyond, side)
        whole_rows, rows = partial(_kernel_rows, logs, side), rows_with_keys(mask, causal=False)
        mean = weighted_mean(numerator, denominator, keys, values, whole_rows, rows)
        return gated(query, mean.transpose(1, 2), value.dtype)


def _grid_sums(cells: Tensor, weights: Tensor, beyond: Tensor, side: int) -> Tensor:
    """Sums (B, H, T, x) of cells: with the weights (H, s, s) in the window, and with one weight (H, 1, 1) outside."""
    batch, heads, _, width = cells.shape
    grid = cells.transpose(2, 3).reshape(batch, heads * width, side, side)
    size = weights.shape[-1]
    before, after = (size - 1) // 2, size // 2
    by_channel = weights.repeat_interleave(width, dim=0)[:, None]
    window = F.conv2d(F.pad(grid, (before, after, before, after)), by_channel, groups=heads * width)
    beside = _outside(grid, before, after, dim=3)
    strip = F.pad(beside, (0, 0, before, after)).unfold(2, size, 1).sum(dim=-1)
    rest = strip + _outside(grid.sum(dim=3, keepdim=True), before, after, dim=2)
    sums = window + rest * beyond.repeat_interleave(width, dim=0)
    return sums.reshape(batch, heads, width, -1).transpose(2, 3)


def _outside(grid: Tensor, before: int, after: int, dim: int) -> Tensor:
    """Sums along a dimension over what is more than ``before`` places before, or more than ``after`` behind."""
    return _earlier(grid, before, dim) + _earlier(grid.flip(dim), after, dim).flip(dim)


def _earlier(grid: Tensor, distance: int, dim: int) -> Tensor:
    """Sums along a dimension over what is more than ``distance`` places before."""
    length = grid.shape[dim]
    kept = max(0, length - distance - 1)
    sums = grid.narrow(dim, 0, kept).cumsum(dim)
    nothing = torch.zeros_like(grid.narrow(dim, 0, length - kept))
    return torch.cat([nothing, sums], dim=dim)


def _kernel_rows(logs: Tensor, side: int, head: Tensor, row: Tensor) -> Tensor:
    """Whole rows of the position bias, for exact means."""
    size = logs.shape[-1]
    cell = torch.arange(side * side, device=row.device)
    down = cell // side - row[:, None] // side + (size - 1) // 2
    right = cell % side - row[:, None] % side + (size - 1) // 2
    inside = (down >= 0) & (down < size) & (right >= 0) & (right < size)
    found = logs[head[:, None], down.clamp(0, size - 1), right.clamp(0, size - 1)]
    return found.masked_fill(~inside, 0.0)
