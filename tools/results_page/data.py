"""The rows of the file of results by what they are for, and averages over tasks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from papa_lightning.study.intervals import Estimate
from papa_lightning.study.report.data import LOW_SCORE
from results_page.collecting import NAMES, read_collected

#: Names of encoders that are checkpoints of one training.
_GRADED = re.compile(r"step-\d+")
#: The share that the first claim is about.
HALF = 0.5


@dataclass(frozen=True)
class Average:
    """A mean over tasks with its 95 % interval, NaN where unknown.

    Args:
        value: The mean.
        low: Lower end.
        high: Upper end.
        tasks: Names of the tasks.
    """

    value: float
    low: float
    high: float
    tasks: tuple[str, ...]

    @property
    def estimate(self) -> Estimate:
        """The same for verdicts."""
        return Estimate(self.value, self.low, self.high)

    def minus(self, other: Average) -> Average:
        """The difference, with the interval of two independent values."""
        value = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Average(value, value - below, value + above, self.tasks)


def average(rows: Sequence[pd.Series]) -> Average | None:
    """The mean of relative changes of tasks; None for none.

    Tasks have examples of their own, so that half-widths of intervals add up as squares:

        low = mean - sqrt(sum (value - low)^2) / k
    """
    known = [row for row in rows if math.isfinite(row["relative"])]
    if not known:
        return None
    value, low, high = (
        np.array([row[f"relative{end}"] for row in known], dtype=float) for end in ("", "_low", "_high")
    )
    mean, number = float(value.mean()), len(known)
    below, above = (float(np.sqrt(np.sum(side**2)) / number) for side in (value - low, high - value))
    return Average(mean, mean - below, mean + above, tuple(row["task"] for row in known))


class Part:
    """The results of some encoders on some tasks.

    Args:
        rows: Their rows.
        studies: Settings and conditions of the studies, by name.
    """

    def __init__(self, rows: pd.DataFrame, studies: Mapping[str, Any]) -> None:
        self.rows, self.studies = rows, {name: studies[name] for name in dict.fromkeys(rows["study"])}
        self.own = rows[(rows["kind"] == "score") & rows["is_score"]]

    def __bool__(self) -> bool:
        return len(self.own) > 0

    @cached_property
    def encoders(self) -> list[str]:
        """Names of the encoders, from few heads to many, and of as many in the order of their names."""
        heads = self.own.groupby("encoder")["total_heads"].max()
        return sorted(heads.index, key=lambda name: (heads[name], name))

    @cached_property
    def tasks(self) -> list[str]:
        """Names of the tasks in the order of the studies."""
        return list(dict.fromkeys(self.own["task"]))

    @cached_property
    def criteria(self) -> list[str]:
        """Criteria at shares between 0 and 1, random orders last."""
        inner = self.own[self.own["constants"] == "average"]["criterion"]
        return sorted({name: None for name in inner if name}, key=lambda name: name == "random")

    @property
    def first(self) -> str:
        """The criterion of the controls, which is the first of the studies."""
        controls = self.own.loc[~self.own["constants"].isin(("", "average")), "criterion"]
        return next((name for name in (*controls, *self.criteria) if name), "variance")

    def row(
        self,
        encoder: str,
        task: str,
        share: float,
        criterion: str = "",
        constants: str = "average",
        kind: str = "score",
        best: bool = False,
    ) -> pd.Series | None:
        """The row of a choice of heads; where the share leaves no choice, the criterion does not matter.

        `best` takes the best epoch in place of the last.
        """
        chosen = criterion if 0 < share < 1 else ""
        return self._by_name.get((kind, encoder, task, chosen, constants if share else "", share, best))

    @cached_property
    def metrics(self) -> dict[tuple[str, str], str]:
        """The metric of each encoder's own score on each task."""
        return {(row.encoder, row.task): row.metric for row in self.own.itertuples()}

    @cached_property
    def _by_name(self) -> dict[tuple[Any, ...], pd.Series]:
        """The rows of the tasks' own scores, last and best epoch, by what identifies them."""
        found = {}
        for _, row in self.rows.iterrows():
            own, names = self.metrics.get((row["encoder"], row["task"])), tuple(row[name] for name in NAMES[:6])
            if row["kind"] != "area" and row["metric"] in (own, f"{own}/best"):
                key = (*names, row["metric"] != own)
                found[key] = row
        return found

    def known(self, encoder: str, share: float, criterion: str = "", **names: Any) -> list[pd.Series]:
        """The rows of a choice of heads, of all tasks that have it."""
        found = (self.row(encoder, task, share, criterion, **names) for task in self.tasks)
        return [row for row in found if row is not None]

    def change(
        self, encoder: str, share: float, criterion: str = "", tasks: Container[str] | None = None, **names: Any
    ) -> Average | None:
        """The mean relative change over the tasks that beat chance, or over those of some tasks."""
        rows = self.known(encoder, share, criterion, **names)
        return average([row for row in rows if tasks is None or row["task"] in tasks])

    def solid(self, encoder: str) -> list[str]:
        """The tasks whose score with all heads dynamic is not near 0, which makes intervals of changes wide."""
        return [row["task"] for row in self.known(encoder, 0.0) if abs(row["mean"]) >= LOW_SCORE]

    def areas(self, encoder: str, criterion: str, against: str) -> list[pd.Series]:
        """The areas between the curves of two criteria, of all tasks that beat chance."""
        rows = self.rows[(self.rows["kind"] == "area") & (self.rows["encoder"] == encoder) & self.rows["beats_chance"]]
        rows = rows[(rows["criterion"] == criterion) & (rows["against"] == against)]
        return [row for _, row in rows.iterrows()]

    def facts(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """What the constants say of each encoder and task that has results: data, length, model."""
        found = [pair for one in self.studies.values() for pair in one["pairs"]]
        known = set(zip(self.own["encoder"], self.own["task"], strict=True))
        return {pair: fact for fact in found if (pair := (fact["encoder"], fact["task"])) in known}

    def layers(self, encoder: str) -> tuple[int, int]:
        """Numbers of layers and of heads of an encoder."""
        model = next(one["model"] for (name, _), one in self.facts().items() if name == encoder)
        return int(model["layers"]), int(model["layers"] * model["heads"])


class Results:
    """All results, in three parts: pretrained encoders on tasks, graded encoders on tasks, and embeddings.

    Args:
        rows: The rows of the file.
        studies: Settings and conditions of the studies, by name.
        reliability: How far averages of attention are apart, as tools/measure_reliability.py writes it; None for none.
    """

    def __init__(self, rows: pd.DataFrame, studies: Mapping[str, Any], reliability: pd.DataFrame | None = None) -> None:
        self.rows, self.studies, self.reliability = rows, studies, reliability
        embedded = self._pairs(rows["unit"].isin(("pairs", "queries")))
        graded = np.array([bool(_GRADED.fullmatch(name)) for name in rows["encoder"]], dtype=bool)
        self.tasks = Part(rows[~graded & ~embedded], studies)
        self.graded = Part(rows[graded & ~embedded], studies)
        self.embeddings = Part(rows[embedded], studies)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What :func:`~results_page.collecting.collect` wrote."""
        rows, studies, compared = read_collected(path)
        return cls(rows, studies, pd.DataFrame(**json.loads(compared)) if compared else None)

    def _pairs(self, chosen: Iterable[bool]) -> Any:
        """All rows of the studies that have one of the chosen rows."""
        studies = set(self.rows.loc[list(chosen), "study"])
        return self.rows["study"].isin(studies).to_numpy()
