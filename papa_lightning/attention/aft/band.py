"""Attention-free means whose position bias is 0 outside a band, in O(T s d): AFT-local, AFT-conv, causal AFT-simple.

Blocks of rows see their own and the neighbouring blocks of keys through dense matrices: ``exp(w)`` in the band and 1
beside it. Farther blocks have the weight 1: their sums are enough. All terms are positive, so that nothing cancels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from papa_lightning.attention.aft.means import finite_maximum, rows_with_keys, weighted_mean

#: Blocks are no shorter: smaller matrix products are slower for each row.
_SHORTEST_BLOCK = 32


class Band(NamedTuple):
    """Biases (H, T, n), or (H, 1, n) alike for all rows: ``w[t, t + first + j] = bias[t, j]``, 0 for all other keys."""

    bias: Tensor
    first: int

    @property
    def reach(self) -> int:
        """The largest distance of a key in the band."""
        width = self.bias.shape[-1]
        return max(-self.first, self.first + width - 1, 0) if width else 0


class _Blocks(NamedTuple):
    """Division of a sequence: ``number`` blocks of ``size``; rows see ``left`` blocks before and ``right`` behind."""

    size: int
    number: int
    left: int
    right: int


def banded_mean(keys: Tensor, values: Tensor, band: Band, mask: Tensor | None, causal: bool) -> Tensor:
    """Means (B, H, T, h) with the weights ``exp(K_t' + w_tt')``, of keys (B, H, T, a) and values (B, H, T, h)."""
    length = keys.shape[2]
    cut = _cut(length, band, causal)
    key_blocks, value_blocks = _padded(keys, cut, -torch.inf), _padded(values, cut, 0.0)
    top = finite_maximum(key_blocks, dim=3)  # running, so that a large key cannot wipe out the rows before it
    top = top.cummax(dim=2).values if causal else top.amax(dim=2, keepdim=True)
    scaled = torch.exp(key_blocks - top)
    logs = _block_logs(band, cut, causal)
    row_top = finite_maximum(logs, dim=-1).clamp_min(0.0)
    weights = torch.exp(logs - row_top)
    beyond = torch.exp(-row_top)
    mixer = _CausalBlocks(cut, weights, beyond, top) if causal else _Both(cut, weights, beyond)
    denominator = mixer(scaled).flatten(2, 3)[:, :, :length]
    numerator = mixer(scaled * value_blocks).flatten(2, 3)[:, :, :length]

    def whole_rows(group: Tensor, row: Tensor) -> Tensor:
        offset = torch.arange(length, device=row.device) - row[:, None]
        bias = band.bias.expand(-1, length, -1)[group % band.bias.shape[0], row]
        return _spread(bias, offset, band.first, causal)

    return weighted_mean(numerator, denominator, keys, values, whole_rows, rows_with_keys(mask, causal))


def _spread(bias: Tensor, offset: Tensor, first: int, causal: bool) -> Tensor:
    """(..., n) biases of a band to (..., keys) by the offsets (..., keys) of these keys from the row."""
    width = bias.shape[-1]
    if width:
        index = offset - first
        inside = (index >= 0) & (index < width)
        index = index.clamp(0, width - 1).expand(*bias.shape[:-1], -1)
        logs = bias.gather(-1, index).masked_fill(~inside, 0.0)
    else:
        logs = bias.new_zeros(*bias.shape[:-1], offset.shape[-1])
    return logs.masked_fill(offset > 0, -torch.inf) if causal else logs


def _cut(length: int, band: Band, causal: bool) -> _Blocks:
    count = max(1, length // max(band.reach, _SHORTEST_BLOCK))
    size = math.ceil(length / count)  # blocks of equal length, at least as long as the band reaches
    neighbours = int(band.reach > 0 and count > 1)
    return _Blocks(size, count, neighbours, 0 if causal else neighbours)


def _padded(tensor: Tensor, cut: _Blocks, fill: float) -> Tensor:
    """(B, H, T, x) to (B, H, left + number + right, size, x)."""
    after = cut.number * cut.size - tensor.shape[2] + cut.right * cut.size
    padded = F.pad(tensor, (0, 0, cut.left * cut.size, after), value=fill)
    return torch.unflatten(padded, 2, (-1, cut.size))


def _block_logs(band: Band, cut: _Blocks, causal: bool) -> Tensor:
    """(H, blocks or 1, size, keys in sight): logarithms of the weights of the keys that a block of rows sees."""
    device = band.bias.device
    row = torch.arange(cut.size, device=device)[:, None]
    column = torch.arange((cut.left + 1 + cut.right) * cut.size, device=device) - cut.left * cut.size
    bias = band.bias
    if bias.shape[1] == 1:
        bias = bias[:, None].expand(-1, 1, cut.size, -1)
    else:
        bias = F.pad(bias, (0, 0, 0, cut.number * cut.size - bias.shape[1]))
        bias = torch.unflatten(bias, 1, (cut.number, cut.size))
    return _spread(bias, column - row, band.first, causal)


class _Both:
    """Sums over all keys: weights (H, blocks or 1, size, keys in sight), and that beyond (H, blocks or 1, size, 1)."""

    def __init__(self, cut: _Blocks, weights: Tensor, beyond: Tensor) -> None:
        self.cut, self.weights, self.beyond = cut, torch.split(weights, cut.size, dim=-1), beyond

    def __call__(self, blocks: Tensor) -> Tensor:
        """(B, H, left + number + right, size, x) to (B, H, number, size, x)."""
        mixed: Tensor = self.in_sight(blocks)
        if self.cut.number <= 1 + self.cut.left:  # no block is out of sight
            return mixed
        return torch.addcmul(mixed, self.out_of_sight(blocks.sum(dim=3)).unsqueeze(3), self.beyond)

    def in_sight(self, blocks: Tensor) -> Tensor:
        """Contribution of the own and the neighbouring blocks."""
        parts = (
            self.carried(weights @ blocks[:, :, shift : shift + self.cut.number], shift)
            for shift, weights in enumerate(self.weights)
        )
        return sum(parts, start=next(parts))

    def carried(self, part: Tensor, shift: int) -> Tensor:
        """A contribution in terms of the maximum of its own block; here all blocks have one maximum."""
        return part

    def out_of_sight(self, sums: Tensor) -> Tensor:
        """(B, H, blocks, x) sums of all blocks to (B, H, number, x) those that a block of rows does not see."""
        count, seen = self.cut.number, self.cut.left + 1 + self.cut.right
        before = F.pad(sums.cumsum(dim=2)[:, :, : count - 1], (0, 0, 1, 0))
        after = F.pad(sums.flip(2).cumsum(dim=2).flip(2)[:, :, seen:], (0, 0, 0, 1))
        return before + after


class _CausalBlocks(_Both):
    """Sums over the keys at or before the row, with running maxima ``top`` (B, H, blocks, 1, a)."""

    def __init__(self, cut: _Blocks, weights: Tensor, beyond: Tensor, top: Tensor) -> None:
        super().__init__(cut, weights, beyond)
        self.top = top

    def carried(self, part: Tensor, shift: int) -> Tensor:
        """Times ``exp`` of the maximum there less the maximum here, which is at most 1."""
        behind = self.cut.left - shift
        return part * torch.exp(self.top[:, :, :-1] - self.top[:, :, 1:]) if behind else part

    def out_of_sight(self, sums: Tensor) -> Tensor:
        """A running sum by doubling: after n rounds each block has the sum of the last 2^n."""
        top = self.top.squeeze(3)
        shift = 1
        while shift < sums.shape[2]:
            earlier = sums[:, :, :-shift] * torch.exp(top[:, :, :-shift] - top[:, :, shift:])
            sums = sums + F.pad(earlier, (0, 0, shift, 0))
            shift *= 2
        behind = 1 + self.cut.left
        before = sums[:, :, : self.cut.number - 1] * torch.exp(top[:, :, :-behind] - top[:, :, behind:])
        return F.pad(before, (0, 0, 1, 0))
