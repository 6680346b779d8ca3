"""Fitting ``rho(i - j) + alpha(j)``, never negative, to averaged attention C with pair counts n.

The loss, ``sum_ij n_ij (C_ij - rho(i - j) - alpha(j))^2``, needs only sums over diagonals and columns.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from papa_lightning.attention import Reach

#: The solver stops when a step changes no number by more than this share of the largest.
_PRECISION = 1e-9
_MOST_STEPS = 20_000


def row_bands(rows: Tensor, first: int, width: int) -> Tensor:
    """The diagonals of rows (..., R, T) from ``first`` on: (..., R, 2 w + 1), at ``w + o`` column i - o, or 0."""
    number, length = rows.shape[-2:]
    low, high = first - width, first + number + width
    near = rows[..., max(low, 0) : min(high, length)]
    padded = F.pad(near, (max(-low, 0), max(high - length, 0))).contiguous()
    *outer, row, _ = padded.stride()
    bands = padded.as_strided((*padded.shape[:-1], 2 * width + 1), (*outer, row + 1, 1))
    return bands.flip(-1)


@dataclass(frozen=True)
class BandSums:
    """Sums over ``n C`` and over n, on which the least squares of the heads of one layer depend."""

    diagonals: Tensor  # (H, 2 w + 1): over the pairs with i - j = o, at ``w + o``
    columns: Tensor  # (H, T): over i
    diagonal_counts: Tensor  # the same of n
    column_counts: Tensor
    pair_counts: Tensor  # (2 w + 1, T): n itself, at ``w + i - j`` and j


def band_sums(diagonals: Tensor, columns: Tensor, counts: Tensor, reach: Reach) -> BandSums:
    """The sums of the fit, from those over attention and the pair counts (T, T) within the reach."""
    counts, width = reach.cut(counts), diagonals.shape[-1] // 2
    pairs = row_bands(counts.T, 0, width).flip(-1).T
    return BandSums(diagonals, columns, pairs.sum(dim=1), counts.sum(dim=0), pairs)


def average_sums(values: Tensor, counts: Tensor, width: int, reach: Reach) -> BandSums:
    """The sums of the fit, from the averages (H, T, T) of a layer and the pair counts (T, T)."""
    totals = reach.cut(counts.double()) * values
    return band_sums(row_bands(totals, 0, width).sum(dim=-2), totals.sum(dim=1), counts.double(), reach)


def fit_profile(sums: BandSums) -> tuple[Tensor, Tensor]:
    """The profile rho (H, 2 w + 1) and columns alpha (H, T) of least loss that are never negative, 0 where unseen."""
    pairs = sums.pair_counts.double()
    per_offset, per_column = _inverse(sums.diagonal_counts), _inverse(sums.column_counts)
    profile = torch.zeros_like(sums.diagonals, dtype=torch.float64)
    columns = sums.columns.double() * per_column
    # Each step lowers a convex loss, and the bound 0 applies to each number separately: it ends at the minimum.
    for _ in range(_MOST_STEPS):
        before = profile
        profile = ((sums.diagonals - columns @ pairs.T) * per_offset).clamp_min(0.0)
        columns = ((sums.columns - profile @ pairs) * per_column).clamp_min(0.0)
        if (profile - before).abs().max() <= _PRECISION * profile.abs().max():
            break
    return profile, columns


def _inverse(counts: Tensor) -> Tensor:
    return torch.where(counts > 0, 1.0 / counts.double().clamp_min(1e-300), 0.0)


def fit_all_columns(sums: BandSums) -> tuple[Tensor, Tensor, Tensor]:
    """Profile and columns of :func:`fit_profile`, those that were never seen of the weight beyond, which comes last."""
    profile, columns = fit_profile(sums)
    beyond = weight_beyond(columns, sums.column_counts)
    return profile, torch.where(sums.column_counts > 0, columns, beyond[:, None]), beyond


def weight_beyond(columns: Tensor, counts: Tensor) -> Tensor:
    """The weight (H,) of unseen columns: the median over those seen half as often as the maximum or more."""
    # No mean, which would depend on the first column and on separators, whose weights are far larger.
    return columns[:, counts >= counts.max() / 2].median(dim=1).values


def relative_error(target: Tensor, fitted: Tensor, counts: Tensor) -> Tensor:
    """``sqrt(sum_ij n_ij (C_ij - F_ij)^2 / sum_ij n_ij C_ij^2)`` of each head (H,), of all rows (H, T, T) or some."""
    target, fitted, weights = target.double(), fitted.double(), counts.double()
    wrong, whole = (((part.square() * weights).sum(dim=(1, 2))) for part in (target - fitted, target))
    return torch.where(wrong > 0, (wrong / whole.clamp_min(1e-300)).sqrt(), 0.0)


def profile_rows(profile: Tensor, columns: Tensor, rows: Tensor, reach: Reach) -> Tensor:
    """The rows of ``rho(i - j) + alpha(j)`` with these numbers, (H, R, T), 0 beyond the reach."""
    width = profile.shape[-1] // 2
    offsets = rows[:, None].to(columns.device) - torch.arange(columns.shape[-1], device=columns.device)
    banded = profile[:, (offsets + width).clamp(0, 2 * width)].masked_fill(offsets.abs() > width, 0.0)
    allowed = reach.allowed(columns.shape[-1], columns.device)[rows.to(columns.device)]
    return (banded + columns[:, None]).masked_fill(~allowed, 0.0)


def infer_reach(values: Tensor, counts: Tensor) -> Reach:
    """The reach of a layer by its constants (H, T, T) that were seen: softmax attention is 0 only beyond it."""
    length = len(counts)
    rows, keys = ((values != 0).any(dim=0) & (counts > 0)).nonzero(as_tuple=True)
    if len(rows) == 0:
        return Reach()
    before, after = (int(offsets.max().clamp_min(0)) for offsets in (rows - keys, keys - rows))
    seen_rows, seen_keys = (counts > 0).nonzero(as_tuple=True)
    farthest = [int(offsets.max()) for offsets in (seen_rows - seen_keys, seen_keys - seen_rows)]
    return clip_reach(Reach(before if before < farthest[0] else None, after if after < farthest[1] else None), length)


def clip_reach(reach: Reach, length: int) -> Reach:
    """The reach as it appears in sequences of a length: a limit that no pair of them exceeds is none."""
    limits = (None if limit is None or limit >= length - 1 else limit for limit in (reach.before, reach.after))
    return Reach(*limits)


_STEPS = 300
_TINY = 1e-30


def fit_low_rank(values: Tensor, counts: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors L and R (H, T, r) of low loss ``sum_ij n_ij (C_ij - (L R^T)_ij)^2`` that are never negative."""
    # The multiplicative rule of Lee and Seung (2001), with weights: no step raises the loss. It starts without random
    # numbers from the leading singular vectors (Boutsidis and Gallopoulos 2008), and ends in a local minimum.
    target, weights = values.double(), counts.double()
    left, right = _start(torch.where(weights > 0, target, 0.0), rank)
    weighted = weights * target
    for _ in range(_STEPS):
        left = left * (weighted @ right) / ((weights * (left @ right.mT)) @ right + _TINY)
        right = right * (weighted.mT @ left) / ((weights * (left @ right.mT)).mT @ left + _TINY)
    return left, right


def _start(values: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Initial factors: the larger of the positive and the negative part of each pair of singular vectors."""
    outer, scales, inner = cast("tuple[Tensor, ...]", torch.linalg.svd(values))
    outer, inner, scales = outer[..., :rank], inner.mT[..., :rank], scales[..., None, :rank]
    pairs = [((sign * outer).clamp_min(0.0), (sign * inner).clamp_min(0.0)) for sign in (1, -1)]
    norms = [first.norm(dim=1, keepdim=True) * second.norm(dim=1, keepdim=True) for first, second in pairs]
    positive = norms[0] >= norms[1]
    left, right = (torch.where(positive, one, other) for one, other in zip(*pairs, strict=True))
    # A number that is 0 stays 0 under the rule: a small share of the mean lets all of them grow.
    floor = 0.01 * values.mean(dim=(1, 2), keepdim=True).sqrt()
    return left * scales.sqrt() + floor, right * scales.sqrt() + floor
