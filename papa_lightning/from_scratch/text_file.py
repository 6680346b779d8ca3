"""Text files as data for language modelling."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from papa_lightning.checks import as_text, check_choice, maybe, whole
from papa_lightning.datamodules.parts import Part, PartsDataModule, Rows
from papa_lightning.datamodules.reading.files import content_hash
from papa_lightning.errors import DataError, similar_file

Unit = Literal["characters", "bytes"]
"""Unit of a token."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # token 0: all characters that the training part lacks

Numbers = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Tokens:
    """A text as numbers (n,), the names of the V tokens, none for bytes, and their number V."""

    numbers: Numbers
    names: tuple[str, ...]
    size: int


def read_tokens(paths: Sequence[Path], unit: Unit, train_share: float) -> Tokens:
    """Text files, one after the other, as numbers; one file of bytes is mapped into memory, never read as a whole."""
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"files has {str(path)!r}, but there is no such file: pass text files{similar_file(path) or '.'}"
            )
        if path.stat().st_size == 0:
            raise DataError(f"files has {str(path)!r}, which is empty: pass text files.")
    if unit == "bytes":
        maps = [np.memmap(path, dtype=np.uint8, mode="r") for path in paths]
        return Tokens(maps[0] if len(maps) == 1 else np.concatenate(maps), (), 256)
    return number_characters("".join(_decode(path) for path in paths), train_share)


def number_characters(text: str, train_share: float) -> Tokens:
    """Number the characters of a text, in the order of their code points, from 1; what the first share lacks is 0."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    known = np.unique(points[: int(len(points) * train_share)])
    places = np.searchsorted(known, points).clip(max=max(len(known) - 1, 0))
    numbers = np.where(known[places] == points, places + 1, 0) if len(known) else np.zeros_like(points)
    names = (UNKNOWN, *map(chr, known.tolist()))
    return Tokens(numbers.astype(np.min_scalar_type(len(known))), names, len(names))


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"files has {str(path)!r}, which is no UTF-8 text (byte {error.start}): convert it, or pass unit='bytes'."
        ) from error


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of T tokens of a text (n,), each token with its successor; tokens at the end may be left out."""

    def __init__(self, numbers: Numbers, length: int) -> None:
        self.numbers, self.length = numbers, length

    def __len__(self) -> int:
        return max(len(self.numbers) - 1, 0) // self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """The tokens `input_ids` (T,), a mask of ones, the next tokens `labels` (T,), and the number of the block."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.length
        block = torch.from_numpy(self.numbers[start : start + self.length + 1].astype(np.int64))
        return {
            "input_ids": block[:-1],
            "attention_mask": torch.ones(self.length, dtype=torch.int64),
            "labels": block[1:],
            "example_id": torch.tensor(index),
        }


#: Begin of validation and test as shares of the text; the convention of enwik8: 90, 5 and 5 %.
TRAIN_END, VALIDATION_END = 0.9, 0.95


class TextFileDataModule(PartsDataModule):
    """Characters or bytes of text files: the first 90 % to train on, the next 5 % to validate, the last 5 % to test.

    Each part is cut into blocks of T tokens that do not overlap; tokens at its end that fill no block are left out.

    Batches are mappings of int64 tensors: `input_ids` (B, T), `attention_mask` (B, T) of ones, `labels` (B, T), the
    token that follows each one, and `example_id` (B,), the number of the block in its part.

    Args:
        files: The path of a text file, or several, which are joined in their order.
        unit: "characters": Unicode characters of UTF-8 text, numbered by those that the training part has; all others
            are token 0. "bytes": tokens 0 to 255; one file is mapped into memory.
        max_length: T, the tokens of a block.
        batch_size: Blocks a training batch.
        eval_batch_size: Blocks a batch of validation, test and prediction. None: as `batch_size`.
        num_workers: Processes that load batches, per dataloader. 0: none besides the main one.
        max_train_blocks: Take so many blocks from the start of the training part. None: all.
        max_eval_blocks: The same for the other parts.

    Raises:
        PapaError: For an argument out of its range, a file that cannot be read, or one too short for a block a part.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "text.txt")
        ...     _ = path.write_text("the cat sat on the mat. " * 40)
        ...     data = TextFileDataModule(str(path), max_length=16, batch_size=4)
        ...     data.setup("fit")
        >>> data.num_labels, next(iter(data.val_dataloader()))["input_ids"].shape
        (12, torch.Size([2, 16]))
    """

    def __init__(
        self,
        files: str | list[str],
        unit: Unit = "characters",
        max_length: int = 256,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        max_train_blocks: int | None = None,
        max_eval_blocks: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        given = [files] if isinstance(files, (str, Path)) else list(files)
        self.files = [as_text("files", path) for path in given]
        if not self.files:
            raise DataError("files is empty: pass the path of a text file.")
        self.save_hyperparameters({"files": self.files}, logger=False)
        check_choice("unit", unit, get_args(Unit))
        self.unit: Unit = unit
        self.max_length: int = whole(1)("max_length", max_length)
        self.max_train_blocks: int | None = maybe(whole(1))("max_train_blocks", max_train_blocks)
        self.max_eval_blocks: int | None = maybe(whole(1))("max_eval_blocks", max_eval_blocks)

    @cached_property
    def tokens(self) -> Tokens:
        """The text as numbers, read at the first use."""
        return read_tokens([Path(path).expanduser() for path in self.files], self.unit, TRAIN_END)

    @property
    def num_labels(self) -> int:
        """V, the number of different tokens."""
        return self.tokens.size

    @property
    def label_names(self) -> Sequence[str] | None:
        """The characters by number, the unknown one first; None for bytes."""
        return self.tokens.names or None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of `LanguageModelingTask`; the first one is its score, lower is better."""
        return ("bits_per_character" if self.unit == "characters" else "bits_per_byte", "accuracy")

    @property
    def description(self) -> str:
        """The training data in a few words, for metadata; without any path."""
        return f"{self.unit} of {', '.join(Path(path).name for path in self.files)}, first {TRAIN_END:.0%}"

    def fingerprint(self) -> str:
        """Identify the files by their bytes, in their order; see `TaskDataModule.fingerprint`."""
        return hashlib.sha256(" ".join(map(content_hash, self.files)).encode()).hexdigest()

    def part(self, name: Part) -> Rows:
        """The blocks of a part; see `PartsDataModule.part`."""
        numbers = self.tokens.numbers
        ends = {"train": (0, TRAIN_END), "validation": (TRAIN_END, VALIDATION_END), "test": (VALIDATION_END, 1)}
        first, last = (int(len(numbers) * share) for share in ends[name])
        limit = self.max_train_blocks if name == "train" else self.max_eval_blocks
        if last - first <= self.max_length:
            raise DataError(
                f"the {name} part of {', '.join(self.files)} has {last - first} {self.unit}, too few for a block of "
                f"max_length={self.max_length} and the one that follows it: pass more text, or a smaller max_length."
            )
        if limit is not None:
            last = min(last, first + limit * self.max_length + 1)
        return Blocks(numbers[first:last], self.max_length)
