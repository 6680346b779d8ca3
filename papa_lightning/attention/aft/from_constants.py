"""Position biases of attention-free kinds that reproduce constants (H, T, T): logarithms of rows divided by their sums.

A key weighs ``exp(w_tt')`` over the sum of these, so any shift of a row gives the same. A pair without a weight of its
own has ``exp(0) = 1``: there the logarithm is taken of multiples of what pairs stand for.
"""

import torch
from torch import Tensor

from papa_lightning.attention.functional import EPS, accumulation_dtype

#: The averages that are 0 in a row have at most this share of it together.
FLOOR = 1e-7


def dense_bias(constants: Tensor) -> Tensor:
    """Bias (H, T, T) of AFT-full, ``w = log(max(P, floor))`` with P the constants, their rows divided by their sums."""
    return _log(_distributions(constants))


def band_bias(constants: Tensor, window: int, causal: bool) -> Tensor:
    """Bias (H, T, offsets) of AFT-local, ``w_tt' = log P_tt' - log p_t`` in the window; by definition 0 outside."""
    # p_t, the mean of P_tt' over the keys outside that calibration saw, is the one number that keeps their mass.
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
    """Kernel (H, size) of AFT-conv, ``w_j = log p_j - log p``: means of P over the pairs of entry j, and of none."""
    shares = _distributions(constants)
    seen = shares > 0
    means = torch.stack([_mean(shares, seen & (entries == entry), (1, 2))[:, 0, 0] for entry in range(-1, size)], dim=1)
    logs = means.clamp_min(FLOOR / shares.shape[-1]).log()
    return logs[:, 1:] - logs[:, :1]


def kernel_entries(length: int, window: int, causal: bool, side: int | None = None) -> Tensor:
    """Entry of a kernel of AFT-conv for each pair of query and key, (T, T), or -1; in a square grid with a ``side``."""
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
