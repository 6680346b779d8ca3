"""A tokenised split, and the pass of the encoder over it."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from datasets import Dataset
from torch import Tensor

from papa_lightning.calibration.collect import eval_mode
from papa_lightning.encoders import PackedSequences, Packing, similar_lengths
from papa_lightning.errors import PapaError
from papa_lightning.study.features.rows import SplitRows, moves_at_once
from papa_lightning.tasks.base import EncoderTask


class EncodedSplit:
    """A split whose hidden states a frozen encoder computes.

    Args:
        task: The task, with the attention that its encoder has at this moment.
        rows: The rows of the split, looked through already or not.
    """

    def __init__(self, task: EncoderTask, rows: Dataset | SplitRows) -> None:
        _check_frozen(task)
        self._task, self._rows = task, rows if isinstance(rows, SplitRows) else SplitRows(task, rows)
        self.reading, self.index = self._rows.reading, self._rows.index
        self._packs = self._rows.only_real and self._can_pack()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def device(self) -> torch.device:
        """The device of the task."""
        return self._task.device

    def vectors(self, sequences: Tensor) -> Tensor:
        """Run the encoder on sequences (B,): their vectors (rows, width), float32, on the device of the task."""
        with torch.no_grad(), eval_mode(self._task.encoder):
            vectors = self._packed(sequences) if self._packs else self._padded(self._rows.read(sequences.tolist()))
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
                tokens = min(tokens, batch_size * max(int(self._rows.lengths.max()), 1))
            return similar_lengths(self._rows.lengths, tokens)
        return torch.split(self._rows.extents.argsort(descending=True, stable=True), batch_size)

    def _packed(self, sequences: Tensor) -> Tensor:
        """The vectors of sequences, from their real tokens alone."""
        if self._moved is not None:
            return self._run(*self._moved, sequences)
        batch = self._rows.read(sequences.tolist())
        packed = self._pack(batch)
        return self._padded(batch) if packed is None else self._run(*packed, torch.arange(len(sequences)))

    @cached_property
    def _moved(self) -> tuple[PackedSequences, Tensor] | None:
        """All rows packed, and which tokens are read, on the device of the task; None where each batch is packed."""
        if not moves_at_once(self.device):
            return None
        parts = []
        for chunk in self._rows.chunks():
            packed = self._pack(chunk)
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
        first = self._rows.read([0])
        with eval_mode(self._task.encoder):
            return self._task.pack(self._task.inputs_of(first)) is not None


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
