"""Slices of tensors by head: views where the heads are neighbours, one copy where they are not."""

from collections.abc import Sequence

import torch
from torch import Tensor


def head_runs(heads: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending heads as runs of neighbours, each (first, number): [0, 1, 4] is [(0, 2), (4, 1)]."""
    runs: list[tuple[int, int]] = []
    for head in heads:
        if runs and head == runs[-1][0] + runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((head, 1))
    return runs


def take_heads(tensor: Tensor, heads: Sequence[int], dim: int, width: int = 1) -> Tensor:
    """Slices of ascending heads along a dimension of ``width`` entries a head: a view of neighbours, else a copy."""
    parts = [tensor.narrow(dim, first * width, number * width) for first, number in head_runs(heads)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def merge_heads(parts: Sequence[tuple[Sequence[int], Tensor]], dim: int) -> Tensor:
    """The inverse of :func:`take_heads`: groups (ascending heads, tensor) of all heads in head order, with one copy."""
    if len(parts) == 1:
        return parts[0][1]
    pieces: list[tuple[int, Tensor]] = []
    for heads, tensor in parts:
        position = 0
        for first, number in head_runs(heads):
            pieces.append((first, tensor.narrow(dim, position, number)))
            position += number
    return torch.cat([piece for _, piece in sorted(pieces, key=lambda piece: piece[0])], dim=dim)
