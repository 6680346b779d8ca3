"""The tokenised rows of a split, looked through once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from datasets import Dataset
from torch import Tensor

from papa_lightning.errors import PapaError
from papa_lightning.study.features.reading import reading_of
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.batch_checks import check_inputs, checked_labels

_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "labels")
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """Places (N,), int64, slots (sum,), int32, and labels (N,) or, for tokens, (sum,), int64, of all N sequences."""

    counts: Tensor
    positions: Tensor
    labels: Tensor

    def __eq__(self, other: object) -> bool:
        """Whether places and labels are equal."""
        if not isinstance(other, SplitIndex):
            return NotImplemented
        return all(torch.equal(own, theirs) for own, theirs in zip(self.tensors(), other.tensors(), strict=True))

    __hash__ = None  # type: ignore[assignment]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three tensors."""
        return self.counts, self.positions, self.labels

    @cached_property
    def starts(self) -> Tensor:
        """Number of places (N,) before every sequence."""
        return self.counts.cumsum(0) - self.counts


class SplitRows:
    """The rows of a split for a task, whatever attention its encoder has.

    Attributes:
        reading: The reading of the probe.
        index: Places and labels.
        lengths: (N,), real tokens of each sequence; int64.
        extents: (N,), slots up to the last token that is real or read; int64.
        only_real: Whether all tokens that are read are real.
    """

    def __init__(self, task: EncoderTask, rows: Dataset) -> None:
        if len(rows) == 0:
            raise PapaError("rows is empty: a probe needs at least one example.")
        self.reading, self._labels = reading_of(task), task.hparams["num_labels"]
        self._rows = rows.with_format("numpy", columns=[name for name in _COLUMNS if name in rows.column_names])
        #: What was read, for a device that takes all tokens again for every choice of heads.
        self._held: list[dict[str, Tensor]] | None = [] if moves_at_once(task.device) else None
        self.index, self.lengths, self.extents, self.only_real = self._scan()
        if len(self.index.positions) == 0:
            raise PapaError(
                f"rows has {len(rows)} sequences, but no token that the probe could read: pass sequences with real "
                "tokens, and for tokens, with labels other than -100."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, numbers: list[int]) -> dict[str, Tensor]:
        """The columns of some rows, (B, T) or (B,)."""
        return _tensors(self._rows[numbers])

    def chunks(self) -> Iterator[dict[str, Tensor]]:
        """The columns of all rows, some at a time."""
        if self._held:
            yield from ({name: values.long() for name, values in chunk.items()} for chunk in self._held)
            return
        for start in range(0, len(self._rows), _CHUNK):
            chunk = _tensors(self._rows[start : start + _CHUNK])
            if self._held is not None:
                self._held.append({name: values.int() for name, values in chunk.items()})
            yield chunk

    def _scan(self) -> tuple[SplitIndex, Tensor, Tensor, bool]:
        """Read and check masks and labels of the whole split; also whether all tokens that are read are real."""
        parts, only_real = list[tuple[Tensor, ...]](), True
        for batch in self.chunks():
            check_inputs(batch, self.reading.max_length)
            labels = checked_labels(batch, self._labels, self.reading.per_token, look=True)
            mask = batch["attention_mask"].bool()
            places = self.reading.places(mask, labels)
            needed = (torch.arange(1, mask.shape[1] + 1) * (mask | places)).max(dim=1).values
            labels, counts = labels[places] if self.reading.per_token else labels, places.sum(dim=1)
            parts.append((counts, places.nonzero()[:, 1].int(), labels, mask.sum(dim=1), needed))
            only_real = only_real and not bool((places & ~mask).any())
        counts, positions, labels, lengths, extents = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return SplitIndex(counts, positions, labels), lengths, extents, only_real


def moves_at_once(device: torch.device) -> bool:
    """Whether all tokens of a split go to a device at once; on a CPU they are there."""
    return device.type != "cpu"


def _tensors(columns: Mapping[str, object]) -> dict[str, Tensor]:
    """The columns of some rows, (B, T) or (B,)."""
    try:
        return {name: torch.as_tensor(values) for name, values in columns.items()}
    except (TypeError, ValueError) as error:
        raise PapaError(
            f"rows has sequences of different length or entries that are no numbers ({error}): pad them all to the "
            "same length, as the data modules do."
        ) from error
