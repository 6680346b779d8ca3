"""Features: the hidden states that a probe reads, stored, or computed for every batch."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from papa_lightning.checks import check_choice, whole
from papa_lightning.errors import PapaError
from papa_lightning.study.features.encoding import EncodedSplit, SplitIndex
from papa_lightning.study.features.folder import Dtype, check_room, read_folder, table_bytes, write_folder
from papa_lightning.study.features.reading import FeatureBatch, Reading, ranges
from papa_lightning.study.timing import Stopwatch
from papa_lightning.tasks.base import EncoderTask


class Features(ABC):
    """The features of one split of a task, with the reading of the probe, and the places and labels of sequences."""

    reading: Reading
    index: SplitIndex

    def __len__(self) -> int:
        """Number of sequences N."""
        return len(self.index.counts)

    @abstractmethod
    def batch(self, sequences: Tensor, device: torch.device) -> FeatureBatch:
        """The features of sequences (B,) of the split, on the device of a probe."""

    def _of(self, sequences: Tensor, vectors: Tensor, rows: Tensor | None = None) -> FeatureBatch:
        """The batch of vectors, all of which or `rows` of which are those of the sequences."""
        counts = self.index.counts[sequences]
        places = ranges(self.index.starts[sequences], counts)
        labels = self.index.labels[places if self.reading.per_token else sequences].to(vectors.device)
        rows = torch.arange(len(vectors), device=vectors.device) if rows is None else rows
        return FeatureBatch(vectors, rows, counts, self.index.positions[places].long(), labels)


class LiveFeatures(Features):
    """Features that are not stored: the encoder runs for every batch, in evaluation mode."""

    def __init__(self, task: EncoderTask, rows: Dataset, watch: Stopwatch | None = None) -> None:
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
        each = self.reading.rows_per_place
        rows = ranges(self.index.starts[sequences] * each, self.index.counts[sequences] * each)
        if device.type == "cpu" and self._table.dtype == torch.float32:  # read where they are, without a copy
            return self._of(sequences, self._table, rows)
        return self._of(sequences, self._table.index_select(0, rows).to(device).float())

    def remove(self) -> None:
        """Delete the folder; the features are unusable afterwards."""
        self._table = torch.empty(0)
        shutil.rmtree(self.folder, ignore_errors=True)  # another process may have been faster


def store_features(
    task: EncoderTask,
    rows: Dataset,
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

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        each, starts, counts, done = split.reading.rows_per_place, split.index.starts, split.index.counts, 0
        for sequences in split.batches(batch_size, tokens_per_batch):
            with watch.part("encoder"):
                vectors = split.vectors(sequences)
            yield ranges(starts[sequences] * each, counts[sequences] * each), vectors
            done += len(sequences)
            if progress is not None:
                progress(done)

    return StoredFeatures(folder, write_folder(folder, split.reading, split.index, dtype, batches(), kept))
