"""Position biases of attention-free kinds that reproduce calibrated averages: their logarithm.

An attention-free layer whose keys are still ignored weighs the key t' by ``exp(w_tt')``, over the sum of these. So
the logarithm of a constant matrix, whatever is added to it row by row, gives that constant head exactly. Where a
form has no weight of its own for a pair, that pair has the weight ``exp(0) = 1``: for those the logarithm is taken of
multiples of what they are to stand for.

Constants of a layer are (H, T, T), rows are queries; every function divides rows by their sums first. An average
that is 0 gets a floor, because minus infinity could never learn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from papa_lightning.attention.functional import EPS, accumulation_dtype

#: The averages that are 0 in a row have at most this share of it together.
FLOOR = 1e-7


def dense_bias(constants: Tensor) -> Tensor:
    """Position bias of AFT-full, ``w = log(max(P, floor))`` with P the constants, their rows divided by their sums.

    Exact: a fresh layer has the constant heads' weights, but for the share of the row that the floor takes, 1e-7.
    Rows without any mass, which calibration never saw, become uniform.

    Args:
        constants: (H, T, T).

    Returns:
        (H, T, T), in at least float32.

    Example:
        >>> dense_bias(torch.tensor([[[2.0, 2.0], [1.0, 3.0]]])).exp()
        tensor([[[0.5000, 0.5000],
                 [0.2500, 0.7500]]])
    """
    return _log(_distributions(constants))


def band_bias(constants: Tensor, window: int, causal: bool) -> Tensor:
    """Position bias of AFT-local, ``w_tt' = log P_tt' - log p_t`` in the window; outside it is 0 by definition.

    Outside its window a row has one weight, 1, for all keys. Within, ``exp(w)`` is in units of that weight, so a row
    stands for P within and for p_t outside. ``p_t`` is the mean of ``P_tt'`` over the keys outside the window that
    calibration saw: the least squares fit of a number to them, row by row, and the only one that leaves their mass as
    it is, so that the weights within the window are exactly those of the constant head where all these keys are real.

    Args:
        constants: (H, T, T).
        window: s; a row's window is ``|t - t'| < s``.
        causal: Only keys at or before the row.

    Returns:
        (H, T, n), in at least float32: columns for the offsets -(s - 1) to s - 1, or to 0 in causal mode. Entries for
        keys before the first or after the last one are 0.
    """
    shares = _distributions(constants)
    length = shares.shape[-1]
    position = torch.arange(length, device=shares.device)
    distance = position - position[:, None]
    outside = (distance.abs() >= window) & (shares > 0)
    level = _mean(shares, outside, dims=(-1,))
    offsets = torch.arange(1 - window, 1 if causal else window, device=shares.device)
    keys = position[:, None] + offsets
    index = keys.clamp(0, length - 1).expand(shares.shape[0], -1, -1)
    band = _log(shares).gather(-1, index) - level.clamp_min(FLOOR / length).log()
    return band.masked_fill((keys < 0) | (keys >= length), 0.0)


def kernel_bias(constants: Tensor, entries: Tensor, size: int) -> Tensor:
    """Kernel of AFT-conv, ``w_j = log p_j - log p``: p_j is the mean of P over the pairs of entry j, p over all others.

    The means are the least squares fit of a matrix that has one number an offset and one for all other pairs.

    Args:
        constants: (H, T, T).
        entries: (T, T), which entry of the kernel each pair has, or -1; see :func:`kernel_entries`.
        size: Number of entries of a kernel.

    Returns:
        (H, size), in at least float32.
    """
    shares = _distributions(constants)
    seen = shares > 0
    means = torch.stack([_mean(shares, seen & (entries == entry), (1, 2))[:, 0, 0] for entry in range(-1, size)], dim=1)
    logs = means.clamp_min(FLOOR / shares.shape[-1]).log()
    return logs[:, 1:] - logs[:, :1]


def kernel_entries(length: int, window: int, causal: bool, side: int | None = None) -> Tensor:
    """Entry of a kernel of AFT-conv for each pair of query and key.

    Args:
        length: T.
        window: s.
        causal: The last entry of the kernel is the row's own.
        side: Side of the square grid of the tokens, row by row; None for a sequence.

    Returns:
        (T, T), -1 where there is none.

    Example:
        >>> kernel_entries(3, window=3, causal=False)
        tensor([[ 1,  2, -1],
                [ 0,  1,  2],
                [-1,  0,  1]])
    """
    position = torch.arange(length)
    before = window - 1 if causal else (window - 1) // 2
    if side is None:
        column = position - position[:, None] + before
        return column.where((column >= 0) & (column < window), -1)
    down = position // side - (position // side)[:, None] + before
    right = position % side - (position % side)[:, None] + before
    inside = (down >= 0) & (down < window) & (right >= 0) & (right < window)
    return (down * window + right).where(inside, -1)


def _distributions(constants: Tensor) -> Tensor:
    exact = constants.to(accumulation_dtype(constants.dtype)).clamp_min(0.0)
    return exact / exact.sum(dim=-1, keepdim=True).clamp_min(EPS)


def _log(shares: Tensor) -> Tensor:
    return shares.clamp_min(FLOOR / shares.shape[-1]).log()


def _mean(shares: Tensor, chosen: Tensor, dims: tuple[int, ...]) -> Tensor:
    number = chosen.sum(dims, keepdim=True).clamp_min(1)
    return shares.masked_fill(~chosen, 0.0).sum(dims, keepdim=True) / number
