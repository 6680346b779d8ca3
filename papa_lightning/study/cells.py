"""Cells of a study, and the choices of heads behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from papa_lightning.study.settings import RECOVERED, StudySettings


@dataclass(frozen=True)
class Choice:
    """A choice of constant heads; no criterion where the share leaves no choice, no kind without constant heads."""

    share: float
    criterion: str | None
    kind: str | None

    @classmethod
    def of(cls, share: float, criterion: str, kind: str) -> Choice:
        """The choice of a cell, without parts that do not matter at its share."""
        share = float(share)
        return cls(share, criterion if 0.0 < share < 1.0 else None, kind if share > 0.0 else None)


@dataclass(frozen=True)
class Cell:
    """One cell of the results: the scores of one probe."""

    encoder: str
    task: str
    criterion: str
    share: float
    kind: str
    seed: int

    @property
    def choice(self) -> Choice:
        """The choice of heads, which several cells may share."""
        return Choice.of(self.share, self.criterion, self.kind)


@dataclass(frozen=True)
class Group:
    """One unit of work: a run of the encoder, and the probes that learn from its hidden states."""

    encoder: str
    task: str
    choice: Choice
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        by, seeds = self.choice.criterion or self.choice.kind, ", ".join(map(str, self.seeds))
        chosen = f"share {self.choice.share:g}" + (f" ({by})" if by else "")
        return f"encoder {self.encoder}, task {self.task}, {chosen}, seeds {seeds}"


def pairs(settings: StudySettings) -> list[tuple[str, str]]:
    """Pairs of encoder and task, in the order of the study."""
    return [(encoder, task) for encoder in settings.encoders for task in settings.tasks]


def cells_of(settings: StudySettings) -> Iterator[Cell]:
    """All cells, in the order of the results."""
    for encoder, task in pairs(settings):
        for kind in settings.constants:
            control = kind not in ("average", RECOVERED)
            shares = {0.0, *map(float, settings.control_shares if control else settings.shares)}
            for criterion in settings.criteria if kind == "average" else settings.criteria[:1]:
                for share in sorted(shares):
                    for seed in settings.seeds:
                        yield Cell(encoder, task, criterion, share, kind, seed)


def choices(settings: StudySettings) -> list[Choice]:
    """The distinct choices of heads, which are the same for every encoder and task."""
    return list(dict.fromkeys(cell.choice for cell in cells_of(settings)))
