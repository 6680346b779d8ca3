"""Shares of a head's average attention: how much of it falls on chosen keys."""

from torch import Tensor


def key_share(values: Tensor, pair_counts: Tensor, chosen: Tensor) -> Tensor:
    """Mean attention of a query on its chosen keys, over the pairs that calibration saw.

        share[h] = sum over chosen (i, j) of n_ij C[h,i,j] / (sum over chosen (i, j) of n_ij)

    With one chosen key a query it is the mean weight of dynamic attention on that key over the data of calibration, and
    exactly so, because the average of the matrices is the average of each entry.

    Args:
        values: Averages (..., T, T), rows are queries.
        pair_counts: Number (T, T) of sequences in which both positions held a real token.
        chosen: Boolean (T, T), true for at most one key of a query.

    Returns:
        (...), float64; 0 where no chosen pair was seen.

    Example:
        >>> import torch
        >>> first = torch.tensor([[True, False], [True, False]])
        >>> key_share(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.ones(2, 2), first)
        tensor(0.3750, dtype=torch.float64)
    """
    seen = pair_counts.double() * chosen
    return (values.double() * seen).sum(dim=(-2, -1)) / seen.sum().clamp_min(1.0)
