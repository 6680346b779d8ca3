"""Numbers that the average attention of a layer gives by itself, without its encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from papa_lightning.calibration.compact.fit import (
    average_sums,
    fit_profile,
    infer_reach,
    profile_rows,
    relative_error,
)
from papa_lightning.calibration.shares import key_share

#: Distance in tokens up to which a key is near its query.
NEAR = 4


@dataclass(frozen=True, eq=False)
class LayerAverage:
    """Average attention of one layer, and its statistics by head, each (H,) in float64.

    Pairs of positions count by the number of sequences behind them.

    Args:
        values: Averages (H, T, T), rows are queries.
        pair_counts: Number (T, T) of sequences in which both positions held a real token.
        separator_slots: Slots that hold a separator wherever they hold a token.

    Example:
        >>> previous = torch.eye(4).roll(-1, 1)  # each token looks at the one before it
        >>> average = LayerAverage(previous[None], torch.ones(4, 4))
        >>> average.offset_share(1), average.distance
        (tensor([1.], dtype=torch.float64), tensor([1.5000], dtype=torch.float64))
    """

    values: Tensor
    pair_counts: Tensor
    separator_slots: tuple[int, ...] = ()

    def offset_share(self, offset: int) -> Tensor:
        """Mean weight of the key `offset` positions before the query, where there is one."""
        return key_share(self.values, self.pair_counts, self._behind == offset)

    def slot_share(self, slot: int) -> Tensor:
        """Mean weight of the key in a slot."""
        return key_share(self.values, self.pair_counts, torch.arange(len(self.pair_counts)) == slot)

    @cached_property
    def separator_share(self) -> Tensor | None:
        """Weight of the slots of separators, taken together; None where these are not known."""
        shares = [self.slot_share(slot) for slot in self.separator_slots]
        return torch.stack(shares).sum(dim=0) if shares else None

    @cached_property
    def near_share(self) -> Tensor:
        """Share of the attention on keys up to :data:`NEAR` tokens away."""
        return self._by_distance[:, : NEAR + 1].sum(dim=1)

    @cached_property
    def near_share_of_even(self) -> float:
        """What :attr:`near_share` is for equal weights of all keys."""
        return float((self._even * (self._behind.abs() <= NEAR)).sum(dim=1) @ self._row_weights)

    @cached_property
    def window(self) -> Tensor:
        """Smallest distance within which half of the attention lies, in tokens."""
        return (self._by_distance.cumsum(dim=1) < 0.5 - 1e-9).sum(dim=1).double()

    @cached_property
    def distance(self) -> Tensor:
        """Mean distance of a key from its query, weighted with the attention, in tokens."""
        return self._by_distance @ torch.arange(len(self.pair_counts), dtype=torch.float64)

    @cached_property
    def entropy(self) -> Tensor:
        """Mean entropy of a constant row, in nats."""
        entropies: Tensor = torch.special.entr(self._rows).sum(dim=2)
        return entropies @ self._row_weights

    @cached_property
    def evenness(self) -> Tensor:
        """How near a constant row is to equal weights of all keys: exp(-KL), 1 for equal weights, 1/n for one of n."""
        ratio = torch.where(self._even > 0, self._rows / self._even.clamp_min(1e-300), 1.0)
        divergence = torch.xlogy(self._rows, ratio).sum(dim=2)
        return (-(divergence @ self._row_weights)).exp()

    @cached_property
    def by_position(self) -> Tensor:
        """Share of the squared weights that no profile of distances and weights of columns explains, 0 to 1.

        The profile is that of :class:`~papa_lightning.CompactConstants` with all distances.
        """
        values, counts = self.values, self.pair_counts.double()
        reach, length = infer_reach(values, counts), len(counts)
        profile, columns = fit_profile(average_sums(values, counts, length - 1, reach))
        fitted = profile_rows(profile, columns, torch.arange(length), reach)
        return relative_error(values, fitted, reach.cut(counts)).square()

    @cached_property
    def _behind(self) -> Tensor:
        order = torch.arange(len(self.pair_counts))
        return order[:, None] - order

    @cached_property
    def _totals(self) -> Tensor:
        """Attention of all sequences by pair, (H, T, T)."""
        return self.values.double() * self.pair_counts.double()

    @cached_property
    def _by_distance(self) -> Tensor:
        """Share of the attention by distance, (H, T)."""
        heads, length, _ = self.values.shape
        distances = self._behind.abs().flatten().expand(heads, -1)
        sums = self._totals.new_zeros(heads, length).scatter_add_(1, distances, self._totals.flatten(1))
        return sums / sums.sum(dim=1, keepdim=True).clamp_min(1e-300)

    @cached_property
    def _rows(self) -> Tensor:
        """Rows of the average as they are in the mean over sequences, divided by their sum, (H, T, T)."""
        return self._totals / self._totals.sum(dim=2, keepdim=True).clamp_min(1e-300)

    @cached_property
    def _even(self) -> Tensor:
        """What rows are for equal weights of all keys, up to the lengths of single sequences, (T, T)."""
        seen = self.pair_counts.double() * (self.values != 0).any(dim=0)
        return seen / seen.sum(dim=1, keepdim=True).clamp_min(1e-300)

    @cached_property
    def _row_weights(self) -> Tensor:
        rows = self.pair_counts.double().diagonal()
        return rows / rows.sum().clamp_min(1.0)
