"""Readings: the hidden states that a kind of probe reads, and how it computes its inputs from them.

The *vectors* of a sequence are the rows that its probe reads, without padding or gaps; a *place* is a token read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from papa_lightning.embeddings import pool
from papa_lightning.errors import PapaError
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.probes import LayerwiseProbe, PooledProbe, Probe, TokenProbe
from papa_lightning.tasks.scores import UNLABELLED
from papa_lightning.tasks.sequence_classification import SequenceClassificationTask
from papa_lightning.tasks.token_classification import TokenClassificationTask


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """The features of B sequences; vectors, rows and labels are on the device of the probe, the rest on the CPU."""

    vectors: Tensor  # (R, width), which may include those of other sequences
    rows: Tensor  # (r,) of `vectors` that belong to the batch, sequence by sequence; int64
    counts: Tensor  # (B,), places of every sequence; int64
    positions: Tensor  # (sum of counts,), slot of every place; int64
    labels: Tensor  # (B,) or, for tokens, (sum of counts,); int64


@dataclass(frozen=True)
class Reading(ABC):
    """The reading of a kind of probe for L+1 `levels` (B, T, d) of hidden states: places, vectors and inputs."""

    levels: int
    max_length: int
    hidden_size: int
    #: Whether every place has a label of its own.
    per_token: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in files."""

    @property
    def rows_per_place(self) -> int:
        """Number of vectors of a place."""
        return 1

    @property
    def width(self) -> int:
        """Size of a vector."""
        return self.hidden_size

    @abstractmethod
    def places(self, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """The tokens (B, T), bool, that are read, by mask (B, T) and labels (B,) or (B, T)."""

    @abstractmethod
    def collect(self, hidden_states: Sequence[Tensor], attention_mask: Tensor, places: Tensor) -> Tensor:
        """The vectors (rows, width) of a batch, sequence by sequence, from L+1 levels (B, T, d), embeddings first."""

    def inputs(self, probe: Probe, batch: FeatureBatch) -> Tensor:
        """The inputs (B, F) or, for tokens, (sum of counts, F) of the probe's `classify`."""
        return batch.vectors.index_select(0, batch.rows)

    # For several probes at once, batches have one shape. A *unit* is what has a label, a sequence or a place, by its
    # number; the number of all U units stands for none. Row R of a table of R + 1 vectors is 0.

    def sizes(self, sequences: Tensor, counts: Tensor) -> Tensor:
        """The number of units (...) of batches of sequences (..., B), of which N of `counts` (N,) stands for none."""
        return (sequences < len(counts)).sum(dim=-1)

    def units(self, sequences: Tensor, counts: Tensor, width: int) -> Tensor:
        """The units (..., width) of batches of sequences (..., B), in their order, then U."""
        return sequences

    def unit_rows(self, counts: Tensor, positions: Tensor) -> Tensor:
        """The rows (U + 1, K) of the table that each unit reads, R for none."""
        units = (len(positions) if self.per_token else len(counts)) + 1
        return torch.arange(units, device=counts.device)[:, None]

    def stacked_inputs(self, table: Tensor, rows: Tensor, position_weights: Tensor | None) -> Tensor:
        """The inputs (S, pieces, n, F / pieces) of S probes from the rows (S, n, K) of their units."""
        return table.index_select(0, rows.flatten()).view(len(rows), 1, -1, table.shape[1])


@dataclass(frozen=True)
class LayerwiseReading(Reading):
    """All levels of all real tokens, for `LayerwiseProbe`; the levels of a sequence follow each other."""

    name: ClassVar[str] = "layerwise"

    @property
    def rows_per_place(self) -> int:
        """One vector for each level."""
        return self.levels

    def places(self, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """All real tokens."""
        return attention_mask.bool()

    def collect(self, hidden_states: Sequence[Tensor], attention_mask: Tensor, places: Tensor) -> Tensor:
        """The vectors, level by level within a sequence."""
        counts = places.sum(dim=1)
        chosen = places.flatten().nonzero().squeeze(1)
        # With n tokens in the sequence and s in those before it, token j of the batch stands at (L+1) s + k n + j - s.
        own, before = _spread(torch.stack([counts, counts.cumsum(0) - counts], dim=1), counts)
        first = torch.arange(len(chosen), device=chosen.device) + (self.levels - 1) * before
        vectors = hidden_states[0].new_empty(self.levels * len(chosen), self.hidden_size)
        for number, level in enumerate(hidden_states):
            vectors.index_copy_(0, first + number * own, level.flatten(0, 1).index_select(0, chosen))
        return vectors

    def inputs(self, probe: Probe, batch: FeatureBatch) -> Tensor:
        r"""The weighted sums :math:`[v_0; \dots; v_L]`; embedding_bag takes 0.95 ms against 1.5 ms for padded rows."""
        assert isinstance(probe, LayerwiseProbe)
        cells = position_cells(batch.counts, batch.positions, self.levels, self.max_length)
        sizes = batch.counts.repeat_interleave(self.levels)
        device = batch.vectors.device
        weights = probe.position_weights.flatten().index_select(0, cells.to(device))
        starts = (sizes.cumsum(0) - sizes).to(device)
        sums = F.embedding_bag(batch.rows, batch.vectors, starts, mode="sum", per_sample_weights=weights)
        return sums.view(len(batch.counts), self.levels * self.hidden_size)

    def unit_rows(self, counts: Tensor, positions: Tensor) -> Tensor:
        """Row by slot (N + 1, (L+1) T), so that the rows of a unit meet the weights of their slots."""
        before = counts.cumsum(0) - counts
        sequences = torch.arange(len(counts), device=counts.device)
        own, first, sequence = _spread(torch.stack([counts, before, sequences], dim=1), counts)
        level = torch.arange(self.levels, device=counts.device)
        place = torch.arange(len(positions), device=counts.device)
        total = self.levels * len(positions)
        rows = torch.full((len(counts) + 1, self.levels, self.max_length), total, device=counts.device)
        # The levels of a sequence follow each other, see `collect`.
        rows[sequence, :, positions.long()] = ((self.levels - 1) * first + place)[:, None] + level * own[:, None]
        return rows.flatten(1)

    def stacked_inputs(self, table: Tensor, rows: Tensor, position_weights: Tensor | None) -> Tensor:
        r"""A level :math:`v_k` is a piece; every unit reads all slots, most of which may be rows of 0."""
        assert position_weights is not None
        shape = (len(rows), self.levels, rows.shape[1], self.max_length)
        by_level = rows.view(len(rows), -1, self.levels, self.max_length).transpose(1, 2)
        weights = position_weights[:, :, None].expand(shape)
        # Sums and gradients in a fixed order: no row of the table and no weight is added to by two threads.
        sums = F.embedding_bag(
            by_level.reshape(-1, self.max_length),
            table,
            mode="sum",
            per_sample_weights=weights.reshape(-1, self.max_length),
            padding_idx=len(table) - 1,
        )
        return sums.view(*shape[:3], self.hidden_size)


@dataclass(frozen=True)
class PooledReading(Reading):
    """One vector of the last level for each sequence, for `PooledProbe`; its place is slot 0."""

    pooling: Literal["mean", "class_token"]

    @property
    def name(self) -> str:
        """Name in files."""
        return self.pooling

    def places(self, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Slot 0."""
        places = torch.zeros_like(attention_mask, dtype=torch.bool)
        places[:, 0] = True
        return places

    def collect(self, hidden_states: Sequence[Tensor], attention_mask: Tensor, places: Tensor) -> Tensor:
        """The pooled last level."""
        return pool(self.pooling, hidden_states[-1], attention_mask)


@dataclass(frozen=True)
class TokenReading(Reading):
    """All levels of the tokens that have a label, for `TokenProbe`; the levels of a token are one vector."""

    name: ClassVar[str] = "tokens"
    per_token: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """(L+1) d."""
        return self.levels * self.hidden_size

    def places(self, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """All labelled tokens."""
        return labels != UNLABELLED

    def collect(self, hidden_states: Sequence[Tensor], attention_mask: Tensor, places: Tensor) -> Tensor:
        """All levels of a token as one vector."""
        return torch.cat([level[places] for level in hidden_states], dim=-1)

    def sizes(self, sequences: Tensor, counts: Tensor) -> Tensor:
        """The places of the sequences."""
        return F.pad(counts, (0, 1))[sequences].sum(dim=-1)

    def units(self, sequences: Tensor, counts: Tensor, width: int) -> Tensor:
        """The places of the sequences, one sequence after the other."""
        own = F.pad(counts, (0, 1))[sequences]
        ends = own.cumsum(dim=-1)
        shift = F.pad(counts.cumsum(0) - counts, (0, 1))[sequences] - (ends - own)
        place = torch.arange(width, device=counts.device).expand(*ends.shape[:-1], width)
        number = torch.searchsorted(ends, place.contiguous(), right=True)  # of the sequence in its batch
        found = shift.gather(-1, number.clamp_max(ends.shape[-1] - 1)) + place
        return found.where(number < ends.shape[-1], counts.sum())


def reading_of(task: EncoderTask) -> Reading:
    """The reading of the probe of a task; other probes are trained with the Trainer."""
    probe, config = task.probe, task.encoder.config
    sizes = (config.num_hidden_layers + 1, task.hparams["max_length"], config.hidden_size)
    if isinstance(task, SequenceClassificationTask) and isinstance(probe, LayerwiseProbe):
        return LayerwiseReading(*sizes)
    if isinstance(task, SequenceClassificationTask) and isinstance(probe, PooledProbe):
        return PooledReading(*sizes, probe.pooling)
    if isinstance(task, TokenClassificationTask) and isinstance(probe, TokenProbe):
        return TokenReading(*sizes)
    raise PapaError(
        f"task is a {type(task).__name__} with a {type(probe).__name__}, but features are known for a "
        "SequenceClassificationTask with a LayerwiseProbe or PooledProbe, and for a TokenClassificationTask with a "
        "TokenProbe: train it with the Trainer."
    )


#: The readings, by their names in files.
READINGS: Mapping[str, Callable[[int, int, int], Reading]] = {
    "layerwise": LayerwiseReading,
    "tokens": TokenReading,
    "mean": partial(PooledReading, pooling="mean"),
    "class_token": partial(PooledReading, pooling="class_token"),
}


def position_cells(counts: Tensor, positions: Tensor, levels: int, max_length: int) -> Tensor:
    """The place ((L+1) * sum of counts,) of the weight of each vector in the flattened (L+1) x T weights."""
    before = counts.cumsum(0) - counts
    own, first = _spread(torch.stack([counts, before], dim=1), counts * levels)
    place = torch.arange(len(own)) - levels * first
    level = place // own.clamp_min(1)
    return level * max_length + positions[first + place - level * own]


def ranges(starts: Tensor, sizes: Tensor) -> Tensor:
    """Ranges (sum of sizes,) of numbers, one after the other."""
    shifts = starts - (sizes.cumsum(0) - sizes)
    total = int(sizes.sum())
    return shifts.repeat_interleave(sizes, output_size=total) + torch.arange(total)


def _spread(columns: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    """The entries of columns (B, n), each repeated as often as `sizes` (B,) says."""
    return columns.repeat_interleave(sizes, dim=0, output_size=int(sizes.sum())).unbind(1)
