"""Text files as one long row of numbers, and blocks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from papa_lightning.errors import DataError

Unit = Literal["characters", "bytes"]
"""What a token is."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""The name of the token that stands for all characters that the training part does not have; its number is 0."""

Numbers = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Tokens:
    """A text as numbers.

    Args:
        numbers: (n,), the tokens.
        names: Names of the tokens by number; empty for bytes, whose numbers say what they are.
        size: V, the number of different tokens.
    """

    numbers: Numbers
    names: tuple[str, ...]
    size: int


def read_tokens(paths: Sequence[Path], unit: Unit, train_share: float) -> Tokens:
    """Read text files, one after the other, as numbers.

    One file of bytes is mapped into memory and never read as a whole; else one to four bytes a token are held.

    Args:
        paths: The files.
        unit: What a token is. Characters are Unicode code points of UTF-8 text.
        train_share: Share of the text, from its beginning, whose characters are known; the others are token 0.

    Raises:
        DataError: When a file is missing, empty or no UTF-8.
    """
    for path in paths:
        if not path.is_file():
            raise DataError(f"files has {str(path)!r}, but there is no such file: pass text files.")
        if path.stat().st_size == 0:
            raise DataError(f"files has {str(path)!r}, which is empty: pass text files.")
    if unit == "bytes":
        maps = [np.memmap(path, dtype=np.uint8, mode="r") for path in paths]
        return Tokens(maps[0] if len(maps) == 1 else np.concatenate(maps), (), 256)
    return number_characters("".join(_decode(path) for path in paths), train_share)


def number_characters(text: str, train_share: float) -> Tokens:
    """Number the characters of a text, in the order of their code points, from 1.

    Args:
        text: The whole text.
        train_share: See :func:`read_tokens`.

    Example:
        >>> tokens = number_characters("abba!", train_share=0.8)
        >>> tokens.numbers.tolist(), tokens.names[1:], tokens.size
        ([1, 2, 2, 1, 0], ('a', 'b'), 3)
    """
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
    """Blocks of T tokens that do not overlap, each token with the one that follows it. The last tokens may be left out.

    Args:
        numbers: (n,), the tokens of a part of the text.
        length: T.
    """

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
