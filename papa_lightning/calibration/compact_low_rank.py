"""Factors of low rank, never negative, for heads that no profile describes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

_STEPS = 300
_TINY = 1e-30


def fit_low_rank(values: Tensor, counts: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors L and R of low loss ``sum_ij n_ij (C_ij - (L R^T)_ij)^2`` that are never negative.

    By the multiplicative rule of Lee and Seung (2001, "Algorithms for non-negative matrix factorization") with
    weights: no step raises the loss, or makes a number negative. The loss is not convex in both factors, so that this
    is a good pair and not surely the best. It starts from the positive parts of the leading singular vectors
    (Boutsidis and Gallopoulos 2008), so that it needs no random numbers.

    Args:
        values: (H, T, T), never negative.
        counts: (T, T), n.
        rank: r.

    Returns:
        L and R, (H, T, r), float64.
    """
    target, weights = values.double(), counts.double()
    left, right = _start(torch.where(weights > 0, target, 0.0), rank)
    weighted = weights * target
    for _ in range(_STEPS):
        left = left * (weighted @ right) / ((weights * (left @ right.mT)) @ right + _TINY)
        right = right * (weighted.mT @ left) / ((weights * (left @ right.mT)).mT @ left + _TINY)
    return left, right


def _start(values: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """From each pair of singular vectors the larger of its positive and its negative part."""
    outer, scales, inner = cast("tuple[Tensor, ...]", torch.linalg.svd(values))
    outer, inner, scales = outer[..., :rank], inner.mT[..., :rank], scales[..., None, :rank]
    pairs = [((sign * outer).clamp_min(0.0), (sign * inner).clamp_min(0.0)) for sign in (1, -1)]
    norms = [first.norm(dim=1, keepdim=True) * second.norm(dim=1, keepdim=True) for first, second in pairs]
    positive = norms[0] >= norms[1]
    left, right = (torch.where(positive, one, other) for one, other in zip(*pairs, strict=True))
    # What is 0 stays 0 for ever: a little of the mean lets every number grow.
    floor = 0.01 * values.mean(dim=(1, 2), keepdim=True).sqrt()
    return left * scales.sqrt() + floor, right * scales.sqrt() + floor
