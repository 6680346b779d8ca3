"""Parts of a study: what each job of an array works on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from papa_lightning.errors import StudyError

T = TypeVar("T")


@dataclass(frozen=True)
class StudyPart:
    """One of several parts of a study that share its folder, each the work of a process of its own.

    Args:
        number: Number of the part, from 1 on.
        total: Number of parts.

    Raises:
        StudyError: When there is no such part.

    Example:
        >>> [StudyPart(number, 3).of("abcdefgh") for number in (1, 2, 3)]
        [['a', 'b'], ['c', 'd', 'e'], ['f', 'g', 'h']]
    """

    number: int
    total: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise StudyError(
                f"part is {self}, but parts are numbered from 1: pass 1/{self.total} to {self.total}/{self.total}."
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @classmethod
    def parse(cls, text: str) -> StudyPart:
        """The part of a text such as "3/10"; a StudyError for any other text."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None:
            raise StudyError(f"part is {text!r}, but must be a number and the number of parts, such as 3/10.")
        return cls(int(found[1]), int(found[2]))

    def of(self, items: Sequence[T]) -> list[T]:
        """The items of this part: neighbours, so that the parts have as little preparation in common as possible."""
        begin, end = ((number * len(items)) // self.total for number in (self.number - 1, self.number))
        return list(items[begin:end])
