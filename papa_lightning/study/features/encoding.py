"""A tokenised split, and the pass of the encoder over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from datasets import Dataset
from torch import Tensor

from papa_lightning.calibration.collect import eval_mode
from papa_lightning.encoders import PackedSequences, Packing, similar_lengths
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


class EncodedSplit:
    """A split whose hidden states a frozen encoder computes.

    Attributes:
        lengths: (N,), real tokens of each sequence; int64.
        extents: (N,), slots up to the last token that is real or read; int64.
    """

    def __init__(self, task: EncoderTask, rows: Dataset) -> None:
        self.reading = reading_of(task)
        _check_frozen(task)
        if len(rows) == 0:
            raise PapaError("rows is empty: a probe needs at least one example.")
        self._task = task
        self._rows = rows.with_format("numpy", columns=[name for name in _COLUMNS if name in rows.column_names])
        self.index, self.lengths, self.extents, only_real = self._scan()
        self._packs = only_real and self._can_pack()
        if len(self.index.positions) == 0:
            raise PapaError(
                f"rows has {len(rows)} sequences, but no token that the probe could read: pass sequences with real "
                "tokens, and for tokens, with labels other than -100."
            )

    def __len__(self) -> int:
        return len(self.extents)

    @property
    def device(self) -> torch.device:
        """The device of the task."""
        return self._task.device

    def vectors(self, sequences: Tensor) -> Tensor:
        """Run the encoder on sequences (B,): their vectors (rows, width), float32, on the device of the task."""
        with torch.no_grad(), eval_mode(self._task.encoder):
            vectors = self._packed(sequences) if self._packs else self._padded(self._read(sequences))
        if not bool(vectors.sum().isfinite()) and not bool(vectors.isfinite().all()):  # a sum is faster
            raise PapaError(
                f"the encoder gives NaN or infinite hidden states for one of the sequences "
                f"{sequences.tolist()}: look at its weights and constants, or load it in 32-bit precision."
            )
        return vectors

    def batches(self, batch_size: int, tokens_per_batch: int | None) -> Sequence[Tensor]:
        """The numbers of the sequences of each batch, of at most so many sequences, or packed, of so many tokens.

        With None for the tokens, a packed batch on a CPU is no larger than the largest of ``batch_size`` sequences.
        """
        # The longest first: a lack of memory shows at once.
        if self._packs:
            tokens = Packing(tokens_per_batch=tokens_per_batch).tokens(self.device)
            if tokens_per_batch is None and self.device.type == "cpu":
                tokens = min(tokens, batch_size * max(int(self.lengths.max()), 1))
            return similar_lengths(self.lengths, tokens)
        return torch.split(self.extents.argsort(descending=True, stable=True), batch_size)

    def _read(self, sequences: Tensor) -> dict[str, Tensor]:
        return _tensors(self._rows[sequences.tolist()])

    def _packed(self, sequences: Tensor) -> Tensor:
        """The vectors of sequences, from their real tokens alone."""
        if self._moved is not None:
            return self._run(*self._moved, sequences)
        batch = self._read(sequences)
        packed = self._pack(batch)
        return self._padded(batch) if packed is None else self._run(*packed, torch.arange(len(sequences)))

    @cached_property
    def _moved(self) -> tuple[PackedSequences, Tensor] | None:
        """All rows packed, and which tokens are read, on the device of the task; None where each batch is packed."""
        if not moves_at_once(self.device):
            return None
        parts = []
        for start in range(0, len(self._rows), _CHUNK):
            packed = self._pack(_tensors(self._rows[start : start + _CHUNK]))
            if packed is None:
                return None
            parts.append(packed)
        tokens = PackedSequences.join([part for part, _ in parts])
        return tokens.to(self.device), torch.cat([read for _, read in parts]).to(self.device)

    def _pack(self, batch: Mapping[str, Tensor]) -> tuple[PackedSequences, Tensor] | None:
        """The real tokens (R,) of a batch, and whether each is read; None where they cannot be packed."""
        packed, mask = self._task.pack(self._task.inputs_of(batch)), batch["attention_mask"].bool()
        return None if packed is None else (packed, self.reading.places(mask, batch["labels"])[mask])

    def _run(self, packed: PackedSequences, read: Tensor, sequences: Tensor) -> Tensor:
        """The vectors of some of the packed sequences."""
        part = packed.batch(sequences)
        with part.prepared(self.device) as arguments:
            levels = self._task.run_encoder(arguments)
        places = read[part.index] & part.mask
        return self.reading.collect(levels, part.mask.to(self.device), places.to(self.device)).float()

    def _padded(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The vectors of a batch, without the padding at the end of all sequences."""
        mask = batch["attention_mask"].bool()
        places = self.reading.places(mask, batch["labels"])
        longest = max(int((torch.arange(1, mask.shape[1] + 1) * (mask | places)).max()), 1)
        # Slots in between stay, because constant heads depend on the slot.
        inputs = {name: values[:, :longest] for name, values in batch.items() if values.dim() == 2}
        on_device = {name: values.to(self._task.device) for name, values in inputs.items()}
        levels = self._task.run_encoder(self._task.inputs_of(on_device))
        places = places[:, :longest].to(self._task.device)
        return self.reading.collect(levels, on_device["attention_mask"], places).float()

    def _can_pack(self) -> bool:
        """Whether the encoder can run over real tokens alone, by the first row: all have one layout."""
        first = _tensors(self._rows[:1])
        with eval_mode(self._task.encoder):
            return self._task.pack(self._task.inputs_of(first)) is not None

    def _scan(self) -> tuple[SplitIndex, Tensor, Tensor, bool]:
        """Read and check masks and labels of the whole split; also whether all tokens that are read are real."""
        parts, only_real = list[tuple[Tensor, ...]](), True
        for start in range(0, len(self._rows), _CHUNK):
            batch = _tensors(self._rows[start : start + _CHUNK])
            check_inputs(batch, self.reading.max_length)
            labels = checked_labels(batch, self._task.hparams["num_labels"], self.reading.per_token, look=True)
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


def _check_frozen(task: EncoderTask) -> None:
    if any(parameter.requires_grad for parameter in task.encoder.parameters()):
        raise PapaError(
            f"regime is {task.regime!r} and the encoder has parameters that learn, but features are those of a frozen "
            'encoder: build the task with regime="probe".'
        )
    if task.hparams["preset"] != "default":
        raise PapaError(
            f"preset is {task.hparams['preset']!r}, whose frozen encoder trains with dropout, so that its features "
            'differ from epoch to epoch: build the task with preset="default".'
        )
