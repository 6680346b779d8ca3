"""Slices of tensors by head: views where the heads are neighbours, one copy where they are not."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from papa_lightning.runtime import is_exporting


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
    """Slices of heads along a dimension of ``width`` entries a head: a view of neighbours in order, else a copy."""
    runs = head_runs(heads)
    if len(runs) == 1:
        return tensor.narrow(dim, runs[0][0] * width, runs[0][1] * width)
    if tensor.device.type == "cpu" and not is_exporting():
        return torch.cat([tensor.narrow(dim, first * width, number * width) for first, number in runs], dim=dim)
    # One kernel, also backward, where each run would have one of its own.
    by_head = tensor if width == 1 else torch.unflatten(tensor, dim, (-1, width))
    taken = by_head.index_select(dim, head_index(tuple(heads), tensor))
    return taken if width == 1 else taken.flatten(dim, dim + 1)


def head_index(heads: tuple[int, ...], like: Tensor) -> Tensor:
    """The numbers of heads on the device of a tensor; they are kept, because making them lets a device wait."""
    if is_exporting() or isinstance(like, FakeTensor):  # whose numbers are of no use to another call
        return torch.tensor(heads, device=like.device)
    kept: Tensor = _constant_index(heads, like.device)
    return kept


# A graph of torch.compile holds it too, where it would make one in every call.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_index(heads: tuple[int, ...], device: torch.device) -> Tensor:
    return _kept_index(heads, device)


@lru_cache(maxsize=4096)
def _kept_index(heads: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(heads, device=device)


def merge_heads(parts: Sequence[tuple[Sequence[int], Tensor]], dim: int) -> Tensor:
    """The inverse of :func:`take_heads`: groups (ascending heads, tensor) of all heads in head order, with one copy."""
    if len(parts) == 1:
        return parts[0][1]
    if is_exporting():  # one operator, which a graph can leave to the weights of the layer that follows
        present = [head for heads, _ in parts for head in heads]
        joined = torch.cat([tensor for _, tensor in parts], dim=dim)
        order = tuple(present.index(head) for head in range(len(present)))
        return joined.index_select(dim, head_index(order, joined))
    pieces: list[tuple[int, Tensor]] = []
    for heads, tensor in parts:
        position = 0
        for first, number in head_runs(heads):
            pieces.append((first, tensor.narrow(dim, position, number)))
            position += number
    return torch.cat([piece for _, piece in sorted(pieces, key=lambda piece: piece[0])], dim=dim)
