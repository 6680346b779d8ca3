"""Features: the hidden states that a probe reads, stored, in the memory of a GPU, or computed for every batch."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from papa_lightning.checks import check_choice, whole
from papa_lightning.errors import PapaError
from papa_lightning.study.features.encoding import EncodedSplit
from papa_lightning.study.features.folder import (
    Dtype,
    check_room,
    read_folder,
    rounded,
    table_bytes,
    write_folder,
)
from papa_lightning.study.features.reading import FeatureBatch, Reading, ranges
from papa_lightning.study.features.rows import SplitIndex, SplitRows
from papa_lightning.study.timing import Stopwatch
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.scores import UNLABELLED

#: Shares of the free memory of a GPU that features may take, and further ones beside them; batches of the encoder and
#: all probes that train at once take the rest.
_FIRST, _FURTHER = 0.6, 0.3


class Features(ABC):
    """The features of one split of a task, with the reading of the probe, and the places and labels of sequences."""

    reading: Reading
    index: SplitIndex

    def __len__(self) -> int:
        """Number of sequences N."""
        return len(self.index.counts)

    @property
    def leaves_room(self) -> bool:
        """Whether as many features again find room where these are; False where they should not wait for others."""
        return False

    @abstractmethod
    def batch(self, sequences: Tensor, device: torch.device) -> FeatureBatch:
        """The features of sequences (B,) of the split, on the device of a probe."""

    def _rows(self, sequences: Tensor) -> Tensor:
        """The rows of sequences in a table of all vectors of the split."""
        each = self.reading.rows_per_place
        return ranges(self.index.starts[sequences] * each, self.index.counts[sequences] * each)

    def _of(self, sequences: Tensor, vectors: Tensor, rows: Tensor | None = None) -> FeatureBatch:
        """The batch of vectors, all of which or `rows` of which are those of the sequences."""
        counts = self.index.counts[sequences]
        places = ranges(self.index.starts[sequences], counts)
        labels = self.index.labels[places if self.reading.per_token else sequences].to(vectors.device)
        rows = torch.arange(len(vectors), device=vectors.device) if rows is None else rows
        return FeatureBatch(vectors, rows, counts, self.index.positions[places].long(), labels)


class LiveFeatures(Features):
    """Features that are not stored: the encoder runs for every batch, in evaluation mode."""

    def __init__(self, task: EncoderTask, rows: Dataset | SplitRows, watch: Stopwatch | None = None) -> None:
        self._split, self._watch = EncodedSplit(task, rows), watch or Stopwatch()
        self.reading, self.index = self._split.reading, self._split.index

    def batch(self, sequences: Tensor, device: torch.device) -> FeatureBatch:
        """The features, computed."""
        with self._watch.part("encoder"):
            vectors = self._split.vectors(sequences).to(device)
        return self._of(sequences, vectors)


class StoredFeatures(Features):
    """Features in a folder, memory-mapped; :func:`store_features` makes them, and knows the sums of its files."""

    def __init__(self, folder: str | Path, sums: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.reading, self.index, self._table = read_folder(self.folder, sums or {})
        self.nbytes = self._table.nbytes

    @property
    def dtype(self) -> Dtype:
        """Dtype of the stored vectors."""
        return "float16" if self._table.dtype == torch.float16 else "float32"

    def batch(self, sequences: Tensor, device: torch.device) -> FeatureBatch:
        """The features, read."""
        rows = self._rows(sequences)
        if device.type == "cpu" and self._table.dtype == torch.float32:  # read where they are, without a copy
            return self._of(sequences, self._table, rows)
        return self._of(sequences, self._table.index_select(0, rows).to(device).float())

    def near(self, device: torch.device) -> Features:
        """The features in the memory of a GPU that has room for them, else as they are."""
        return self.on(device) if _has_room(device, self.reading, self.index, _FIRST) else self

    def on(self, device: torch.device) -> ResidentFeatures:
        """The features in the memory of a device."""
        table = torch.zeros(len(self._table) + 1, self.reading.width, device=device)
        table[:-1].copy_(self._table)  # without a second table there
        return ResidentFeatures(self.reading, self.index, table)

    def remove(self) -> None:
        """Delete the folder; the features are unusable afterwards."""
        self._table = torch.empty(0)
        shutil.rmtree(self.folder, ignore_errors=True)  # another process may have been faster


class ResidentFeatures(Features):
    """Features in the memory of a device, from where the probes of all seeds read them at once.

    Args:
        reading: The reading.
        index: Places and labels of the sequences.
        table: (R + 1, width), float32: the vectors, and a row of 0.
    """

    def __init__(self, reading: Reading, index: SplitIndex, table: Tensor) -> None:
        self.reading, self.index, self.table = reading, index, table
        self.counts = index.counts.to(table.device)

    @property
    def leaves_room(self) -> bool:
        """Whether the device has memory for as many again."""
        return _has_room(self.table.device, self.reading, self.index, _FURTHER)

    @cached_property
    def labels(self) -> Tensor:
        """The label (U + 1,) of every unit of the reading; -100 for none."""
        return F.pad(self.index.labels, (0, 1), value=UNLABELLED).to(self.table.device)

    @cached_property
    def rows(self) -> Tensor:
        """The rows (U + 1, K) that every unit of the reading reads."""
        return self.reading.unit_rows(self.counts, self.index.positions.to(self.table.device))

    def batch(self, sequences: Tensor, device: torch.device) -> FeatureBatch:
        """The features, read where they are."""
        return self._of(sequences, self.table, self._rows(sequences).to(self.table.device))


def _has_room(device: torch.device, reading: Reading, index: SplitIndex, share: float) -> bool:
    """Whether a device is a GPU, and features fit into a share of its free memory."""
    return is_gpu(device) and table_bytes(reading, index, "float32") <= share * free_bytes(device)


def is_gpu(device: torch.device) -> bool:
    """Whether features are best kept in the memory of a device."""
    return device.type == "cuda"


def free_bytes(device: torch.device) -> int:
    """Bytes of memory of a GPU that are free, or that torch holds without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def resident_features(
    task: EncoderTask,
    rows: Dataset | SplitRows,
    *,
    dtype: Dtype = "float32",
    batch_size: int = 32,
    tokens_per_batch: int | None = None,
    watch: Stopwatch | None = None,
) -> ResidentFeatures | None:
    """Run the encoder of a task once over a split, and leave what its probe reads on its GPU.

    None where there is no GPU, or no room; numbers are rounded to the dtype, as if they were stored.
    """
    if not is_gpu(task.device):
        return None
    split = EncodedSplit(task, rows)
    if not _has_room(task.device, split.reading, split.index, _FIRST):
        return None
    return collect_features(split, encoded(split, batch_size, tokens_per_batch, watch or Stopwatch()), dtype)


def collect_features(split: EncodedSplit, batches: Iterable[tuple[Tensor, Tensor]], dtype: Dtype) -> ResidentFeatures:
    """The features of a split on the device of its task, from rows (r,) of the table and their vectors, rounded."""
    rows, device = len(split.index.positions) * split.reading.rows_per_place, split.device
    table = torch.zeros(rows + 1, split.reading.width, device=device)
    for numbers, vectors in batches:
        table.index_copy_(0, numbers.to(device), rounded(vectors, dtype).float())
    return ResidentFeatures(split.reading, split.index, table)


def store_features(
    task: EncoderTask,
    rows: Dataset | SplitRows,
    folder: str | Path,
    *,
    dtype: Dtype = "float32",
    budget_bytes: int,
    batch_size: int = 32,
    tokens_per_batch: int | None = None,
    kept: bool = True,
    progress: Callable[[int], None] | None = None,
    watch: Stopwatch | None = None,
) -> StoredFeatures:
    """Run the encoder of a task once over a split, and store what its probe reads; an existing folder is reused.

    Features that are `kept` for later runs have sums, and are on the disk when this returns.
    """
    watch = watch or Stopwatch()
    check_choice("dtype", dtype, ("float32", "float16"))
    if batch_size < 1:
        raise PapaError(f"batch_size is {batch_size}, but must be at least 1.")
    if tokens_per_batch is not None:
        whole(1)("tokens_per_batch", tokens_per_batch)
    split = EncodedSplit(task, rows)
    folder = Path(folder).expanduser()
    if folder.exists():
        stored = StoredFeatures(folder)
        if (stored.reading, stored.dtype) != (split.reading, dtype) or stored.index != split.index:
            raise PapaError(
                f"folder is {str(stored.folder)!r}, which holds features of other rows, for another probe or in "
                f"another dtype ({stored.dtype}, {stored.reading}, {len(stored)} sequences): remove it, or pass "
                "another folder."
            )
        return stored
    check_room(table_bytes(split.reading, split.index, dtype), budget_bytes, folder)
    batches = encoded(split, batch_size, tokens_per_batch, watch, progress)
    return StoredFeatures(folder, write_folder(folder, split.reading, split.index, dtype, batches, kept))


def encoded(
    split: EncodedSplit,
    batch_size: int,
    tokens_per_batch: int | None,
    watch: Stopwatch,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the encoder of a task once over a split: rows (r,) of the table of all vectors, and the vectors."""
    each, starts, counts, done = split.reading.rows_per_place, split.index.starts, split.index.counts, 0
    for sequences in split.batches(batch_size, tokens_per_batch):
        with watch.part("encoder"):
            vectors = split.vectors(sequences)
        yield ranges(starts[sequences] * each, counts[sequences] * each), vectors
        done += len(sequences)
        if progress is not None:
            progress(done)
