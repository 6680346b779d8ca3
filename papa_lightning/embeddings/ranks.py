"""Ranks and correlations of resamples, and exact search: the arithmetic of judgements."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]

#: Queries and passages whose similarities are held at once.
_QUERIES, _PASSAGES = 256, 8192


def mid_ranks(values: Numbers, times: NDArray[np.number]) -> Numbers:
    """Ranks of values in resamples of them; equal values have the mean of their ranks.

    Args:
        values: (n,).
        times: (B, n), how often each value is in each resample.

    Returns:
        (B, n), ranks from 1; those of values that are not in a resample mean nothing.

    Example:
        >>> mid_ranks(np.array([5.0, 3.0, 5.0]), np.array([[1, 1, 1], [0, 2, 1]]))[:, 1:].tolist()
        [[1.0, 2.5], [1.5, 3.0]]
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(times[:, order], starts, axis=1).astype(np.float64)
    ranks: Numbers = (counts.cumsum(axis=1) - (counts - 1) / 2)[:, group]
    return ranks


def correlations(one: Numbers, other: Numbers, times: NDArray[np.number]) -> Numbers:
    """Pearson correlations (B,) of values (n,) or (B, n) in resamples; 0 where one has no spread.

    Args:
        one: Values.
        other: The other values of the same units.
        times: (B, n), how often each unit is in each resample.
    """
    total = times.sum(axis=1, keepdims=True)
    centred = [
        values - (np.broadcast_to(values, times.shape) * times).sum(axis=1, keepdims=True) / total
        for values in (one, other)
    ]
    covariance, spread, other_spread = (
        np.einsum("bn,bn,bn->b", times, centred[a], centred[b], optimize=False) for a, b in ((0, 1), (0, 0), (1, 1))
    )
    # What rounding alone leaves of a spread is none.
    scale = np.sqrt(spread * other_spread)
    found: Numbers = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-12)
    return found


def search(queries: Tensor, passages: Tensor, count: int, steps: float) -> Tensor:
    """The passages most similar to each query, by exact search in blocks.

    Args:
        queries: (Q, d), of length 1.
        passages: (P, d), of length 1.
        count: Largest number of passages to find.
        steps: Similarities that are equal when rounded to steps of 1 / `steps` are ordered by the number of the
            passage.

    Returns:
        (Q, min(count, P)), numbers of passages, the most similar first.

    Example:
        >>> search(torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), count=2, steps=1024.0)
        tensor([[1, 0],
                [0, 2]])
    """
    found = []
    for block in torch.split(queries, _QUERIES):
        best = torch.empty(len(block), 0, dtype=torch.int64)
        for start in range(0, len(passages), _PASSAGES):
            some = passages[start : start + _PASSAGES]
            numbers = torch.arange(start, start + len(some))
            similarity = (block @ some.T * steps).round().long()
            # One number that orders by similarity, then by passage.
            keys = torch.cat([best, similarity * len(passages) + (len(passages) - 1 - numbers)], dim=1)
            best = keys.topk(min(count, keys.shape[1]), dim=1).values
        found.append(len(passages) - 1 - best % len(passages))
    return torch.cat(found)


def random_order(grades: Tensor, passages: int) -> tuple[float, float, float]:
    """Expected nDCG@10, MRR@10 and recall@100 of a query for a random order of the passages.

    Args:
        grades: (R,), the grades of its relevant passages.
        passages: Number of all passages, at least R.

    Example:
        >>> random_order(torch.tensor([1.0]), passages=200)[2]
        0.5
    """
    discounts = 1 / torch.arange(2, 12, dtype=torch.float64).log2()
    ideal = grades.double().sort(descending=True).values[:10]
    gain = grades.double().sum() / passages * discounts[:passages].sum() / (ideal * discounts[: len(ideal)]).sum()
    reciprocal, before = 0.0, 1.0  # the probability that no relevant passage stands before a rank
    for rank in range(min(10, passages)):
        hit = min(1.0, len(grades) / (passages - rank))
        reciprocal += before * hit / (rank + 1)
        before *= 1 - hit
    return float(gain), reciprocal, min(100, passages) / passages
