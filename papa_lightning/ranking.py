"""Rankings: the order in which heads become constant."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

from papa_lightning.checks import LARGEST, anything, as_float, listed, maybe, record, shown, text
from papa_lightning.errors import PapaError, RankingFileError
from papa_lightning.files.checked import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

#: Scores are exact to this many units in the last place of the quantities that they are computed from. Batch size,
#: threads and processor move those of real encoders by 3 at most.
UNITS = 16
_FLOAT32 = 2.0**-23

_FORMAT = "papa_lightning.head_ranking/1"


@dataclass(frozen=True)
class HeadRanking:
    """Heads of an encoder, ordered over all layers together: the first becomes constant first.

    Args:
        heads: (layer, head) pairs, each once; the head whose attention matters least comes first.
        scores: The value of the criterion for each of ``heads``, or None.
        criterion: Text of the criterion of the order, e.g. "gate".

    Raises:
        PapaError: When a head is listed twice or is not a pair of whole numbers, or scores do not match the heads or
            are not finite numbers.

    Example:
        >>> ranking = HeadRanking(heads=[(0, 1), (0, 0)], scores=[-0.5, 0.5], criterion="gate")
        >>> ranking.first(0.5)
        [(0, 1)]
    """

    heads: Sequence[tuple[int, int]]
    scores: Sequence[float] | None = None
    criterion: str = "unnamed"

    def __post_init__(self) -> None:
        given: object = self.heads
        if not isinstance(given, Sequence):
            raise PapaError(f"heads is {shown(given)}, but must be a list of (layer, head) pairs.")
        heads = [_as_pair(entry) for entry in given]
        repeated = [head for head, count in Counter(heads).items() if count > 1]
        if repeated:
            raise PapaError(f"heads of the ranking has {min(repeated)} more than once: list every (layer, head) once.")
        object.__setattr__(self, "heads", heads)
        text("criterion", self.criterion)
        if self.scores is not None:
            scores = list(self.scores)
            if len(scores) != len(heads):
                raise PapaError(f"scores has {len(scores)} values for {len(heads)} heads: pass one score a head.")
            scores = [_as_score(score, head) for score, head in zip(scores, heads, strict=True)]
            object.__setattr__(self, "scores", scores)

    @classmethod
    def from_scores(
        cls, scores: Sequence[Sequence[float]], criterion: str, rounding: float | None = None
    ) -> HeadRanking:
        """Rank by ascending score, ties in the order of layers and heads.

        Scores that differ by rounding alone are equal, so that the order is the same on every machine, with any number
        of threads and any batch size.

        Args:
            scores: (L, H) nested sequence; the lowest score becomes constant first.
            criterion: Text of the criterion of the scores.
            rounding: Scores no further apart than this are equal. None means :data:`UNITS` units in the last place
                (float32) of the largest absolute score; 0 takes the scores as they are.

        Raises:
            PapaError: When a score is not a finite number.

        Example:
            >>> HeadRanking.from_scores([[0.3, 0.1], [0.2, 0.4]], "gate").heads
            [(0, 1), (1, 0), (0, 0), (1, 1)]
            >>> HeadRanking.from_scores([[0.1 + 0.2, 0.3]], "gate").heads
            [(0, 0), (0, 1)]
        """
        places = [(layer, head) for layer, row in enumerate(scores) for head, _ in enumerate(row)]
        flat = [_as_score(scores[layer][head], (layer, head)) for layer, head in places]
        if rounding is None:
            rounding = UNITS * _FLOAT32 * max(map(abs, flat), default=0.0)
        ranked = sorted(zip(merge_ties(flat, rounding), places, strict=True))
        return cls([head for _, head in ranked], [score for score, _ in ranked], criterion)

    def first(self, amount: int | float) -> list[tuple[int, int]]:
        """The heads that become constant first.

        Args:
            amount: Number of heads (an int), or share of all heads (a float from 0 to 1, rounded to whole heads).

        Returns:
            The (layer, head) pairs, in the order of the ranking.

        Raises:
            PapaError: When there are not that many heads.
        """
        total = len(self.heads)
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise PapaError(f"heads is {amount!r}, but must be a number (int) or share (float) of heads.")
        if isinstance(amount, float):
            if not 0.0 <= amount <= 1.0:
                raise PapaError(f"heads is the share {amount}, but a share of heads lies between 0 and 1.")
            return list(self.heads[: round(amount * total)])
        if not 0 <= amount <= total:
            raise PapaError(f"heads is the number {amount}, but the ranking has {total} heads.")
        return list(self.heads[:amount])

    def table(self) -> pd.DataFrame:
        """Place and score of each head, by layer and head.

        Returns:
            A DataFrame whose index is (layer, head), with the columns "place" (1 becomes constant first, the last one
            matters most) and "score" (NaN without scores): ``table().loc[3]`` has the heads of layer 3.

        Example:
            >>> HeadRanking(heads=[(0, 1), (0, 0)], scores=[-0.5, 0.5], criterion="gate").table()
                        place  score
            layer head
            0     0         2    0.5
                  1         1   -0.5
        """
        import pandas as pd  # imported late: it is slow to load

        index = pd.MultiIndex.from_tuples(self.heads, names=["layer", "head"])
        scores = [math.nan] * len(self.heads) if self.scores is None else self.scores
        columns = {"place": range(1, len(self.heads) + 1), "score": scores}
        return pd.DataFrame(columns, index=index).sort_index()

    def __repr__(self) -> str:
        ends = f", {self.heads[0]} first, {self.heads[-1]} last" if self.heads else ""
        return f"HeadRanking({self.criterion!r}, {len(self.heads)} heads{ends})"

    def _repr_html_(self) -> str:
        import torch  # both imported late: they are slow to load

        from papa_lightning.figures import head_maps
        from papa_lightning.figures.html import notebook_html

        if not self.heads:
            return notebook_html(repr(self))
        shape = [max(head[axis] for head in self.heads) + 1 for axis in (0, 1)]
        places = torch.full(shape, math.nan, dtype=torch.float64)
        for place, (layer, head) in enumerate(self.heads, start=1):
            places[layer, head] = place
        figure = head_maps({self.criterion: places}, "Order of the heads", "place (1: constant first)")
        return notebook_html(repr(self), figure)

    def save(self, path: str | Path) -> None:
        """Write the ranking as JSON, whole or not at all, into a folder that is made when missing."""
        content = {
            "criterion": self.criterion,
            "heads": [list(head) for head in self.heads],
            "scores": None if self.scores is None else list(self.scores),
        }
        write_json(path, _FORMAT, content)

    @classmethod
    def load(cls, path: str | Path) -> HeadRanking:
        """Read a ranking that :meth:`save` wrote, or one like it that is written by hand, without a checksum.

        Raises:
            RankingFileError: When the file is missing, damaged, or something else.
        """
        remedy = "pass a file that HeadRanking.save or `papa rank` wrote"
        found: HeadRanking = read_json(path, _FORMAT, _as_ranking, RankingFileError, "head ranking", remedy)
        return found


def _as_ranking(name: str, value: object) -> HeadRanking:
    fields = {"criterion": text, "heads": anything, "scores": maybe(listed(anything))}
    return HeadRanking(**record(fields)(name, value))


def merge_ties(values: Sequence[float], rounding: float) -> list[float]:
    """Make numbers equal that differ by rounding only, each to the lowest of its chain of ties.

    Neighbours in ascending order are tied when they are no further apart than ``rounding``.
    """
    merged = list(values)
    order = sorted(range(len(merged)), key=values.__getitem__)
    for before, here in pairwise(order):
        if values[here] - values[before] <= rounding:
            merged[here] = merged[before]
    return merged


def _as_pair(entry: object) -> tuple[int, int]:
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2 and all(map(_is_index, entry)):
        return (int(entry[0]), int(entry[1]))
    raise PapaError(
        f"heads has the entry {shown(entry)}, but a head is a (layer, head) pair of whole numbers from 0 on."
    )


def _as_score(score: object, head: tuple[int, int]) -> float:
    if not isinstance(score, (bool, str)) and isinstance(score, SupportsFloat):
        found = as_float(score) if isinstance(score, int) else float(score)
        if math.isfinite(found):
            return found
    raise PapaError(f"scores has {shown(score)} for head {head}: only finite numbers can be ranked.")


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST
