"""Slices of tensors by head: views where the heads are neighbours, one copy where they are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def head_runs(heads: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending heads as runs of neighbours, each (first, number).

    Python numbers instead of an index tensor: nothing is copied to a device and nothing breaks a compiled graph.

    Example:
        >>> head_runs([0, 1, 4, 6, 7])
        [(0, 2), (4, 1), (6, 2)]
    """
    runs: list[tuple[int, int]] = []
    for head in heads:
        if runs and head == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((head, 1))
    return runs


def take_heads(tensor: Tensor, heads: Sequence[int], dim: int, width: int = 1) -> Tensor:
    """The slices of the given heads along one dimension.

    Args:
        tensor: Any tensor whose dimension ``dim`` has ``width`` entries a head.
        heads: Ascending head numbers, at least one.
        dim: The dimension of the heads.
        width: Entries a head takes in that dimension.

    Returns:
        The chosen part: a view when the heads are neighbours, else a copy.

    Example:
        >>> take_heads(torch.arange(4), [0, 2, 3], dim=0)
        tensor([0, 2, 3])
    """
    parts = [tensor.narrow(dim, first * width, number * width) for first, number in head_runs(heads)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def merge_heads(parts: Sequence[tuple[Sequence[int], Tensor]], dim: int) -> Tensor:
    """The inverse of :func:`take_heads`: groups of heads put back in head order, with one copy.

    Args:
        parts: Pairs of ascending head numbers and a tensor with these heads along ``dim``. Together
            the heads are 0 to H-1, each once.
        dim: The dimension of the heads.

    Returns:
        One tensor with all heads along ``dim``.

    Example:
        >>> merge_heads([([0, 2], torch.tensor([10, 12])), ([1], torch.tensor([11]))], dim=0)
        tensor([10, 11, 12])
    """
    if len(parts) == 1:
        return parts[0][1]
    pieces: list[tuple[int, Tensor]] = []
    for heads, tensor in parts:
        position = 0
        for first, number in head_runs(heads):
            pieces.append((first, tensor.narrow(dim, position, number)))
            position += number
    return torch.cat([piece for _, piece in sorted(pieces, key=lambda piece: piece[0])], dim=dim)
