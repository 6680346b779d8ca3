"""The data of a report: what is read from the folder of a study, and the rows that each figure takes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from papa_lightning.errors import PapaError, StudyError
from papa_lightning.study.intervals import mean_interval
from papa_lightning.study.results import CellResult
from papa_lightning.study.settings import RECOVERED
from papa_lightning.study.statistics import Evidence, with_recovery
from papa_lightning.study.store import NAMED, StudyFolder

#: Relative changes of a score below this mean nothing.
LOW_SCORE = 0.2


@dataclass(frozen=True)
class NamedFile:
    """A file of constants, named by their kind, or a ranking, named by its criterion."""

    encoder: str
    task: str
    name: str
    path: Path


@dataclass(frozen=True)
class StudyData:
    """The data of a report; constants and rankings are the files that exist."""

    folder: Path
    evidence: Evidence
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    constants: tuple[NamedFile, ...]
    rankings: tuple[NamedFile, ...]
    missing: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The table of results."""
        return self.evidence.table

    def has(self, need: str) -> bool:
        """Whether the data hold what a section needs: constants, rankings, about, or a column with a value."""
        found = {"constants": self.constants, "rankings": self.rankings, "about": self.about}
        if need not in found and need in self.table:
            return bool(self.table[need].notna().any())
        if need not in found:
            choices = ", ".join([*found, *map(str, self.table.columns)])
            raise PapaError(f"needs of a section has {need!r}, but must be one of {choices}.")
        return bool(found[need])

    @property
    def summary(self) -> pd.DataFrame:
        """Means and intervals of every metric."""
        return self.evidence.summary

    @property
    def encoders(self) -> Mapping[str, str]:
        """Where each encoder is, by its name in the study."""
        found = self.settings.get("encoders")
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The rows of the summary with the tasks' own scores."""
        own = self.table.loc[self.table["is_score"], ["encoder", "task", "metric"]].drop_duplicates(["encoder", "task"])
        return self.summary.merge(own, on=["encoder", "task", "metric"])

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Encoders and tasks that have a score, in the order of the table."""
        names = self.scores[["encoder", "task"]].drop_duplicates()
        return list(zip(names["encoder"], names["task"], strict=True))

    @cached_property
    def _by_pair(self) -> dict[tuple[str, str], pd.DataFrame]:
        """The scores of each pair, grouped once: a search for each pair would take quadratic time."""
        return {(encoder, task): rows for (encoder, task), rows in self.scores.groupby(["encoder", "task"])}

    def _scores_of(self, encoder: str, task: str) -> pd.DataFrame:
        return self._by_pair.get((encoder, task), self.scores.iloc[:0])

    def curves(self, encoder: str, task: str) -> pd.DataFrame:
        """Scores of a pair with averaged attention, of all criteria."""
        rows = self._scores_of(encoder, task)
        return rows[rows["constants"] == "average"]

    def with_recovery(self, encoder: str, task: str) -> pd.DataFrame:
        """The rows of :meth:`curves`, and those of trained encoders as one more criterion."""
        return with_recovery(self._scores_of(encoder, task))

    def controls(self, encoder: str, task: str) -> pd.DataFrame:
        """Scores of a pair with every kind of constants, averaged attention first, by the criterion of the controls."""
        rows = self._scores_of(encoder, task)
        others = rows[~rows["constants"].isin(("average", RECOVERED))]
        if not len(others):
            return others
        rows = pd.concat([rows[rows["constants"] == "average"], others])
        return rows[(rows["criterion"] == others["criterion"].iloc[0]) & (rows["share"] > 0)]

    def main_curve(self, encoder: str, task: str) -> pd.DataFrame:
        """Scores of a pair by the first criterion of the study."""
        rows = self.curves(encoder, task)
        return rows[rows["criterion"] == rows["criterion"].iloc[0]] if len(rows) else rows

    def baseline(self, encoder: str, task: str) -> pd.Series | None:
        """The score with all heads dynamic; None if it was not measured."""
        rows = self._scores_of(encoder, task)
        rows = rows[(rows["share"] == 0.0) & rows["mean"].notna()]
        return rows.iloc[0] if len(rows) else None

    def is_low(self, encoder: str, task: str) -> bool:
        """Whether the dynamic score is missing or does not beat chance; or, if that is unknown, is too low."""
        found = self.baseline(encoder, task)
        if found is None:
            return True
        if not pd.isna(found["above_chance_low"]):
            return not bool(found["beats_chance"])
        chance = self._about(encoder, task).get("chance")
        floor = max(0.0, chance) if isinstance(chance, (int, float)) else 0.0
        low = found["mean"] if pd.isna(found["low"]) else found["low"]
        return bool(found["mean"] < LOW_SCORE or low <= floor)

    @cached_property
    def relative(self) -> pd.DataFrame:
        """The main curves of all pairs but those whose score is too low."""
        kept = [self.main_curve(*pair) for pair in self.pairs if not self.is_low(*pair)]
        kept = [rows for rows in kept if rows["relative"].notna().any()]
        return pd.concat(kept) if kept else self.scores.iloc[:0]

    def sizes(self, encoder: str, task: str) -> str:
        """Sizes of a pair's data and sequences in words; empty if they are not known."""
        pair, parts = self._about(encoder, task), []
        if (train := pair.get("train_examples")) is not None:
            parts.append(f"{train} training examples")
        if (texts := pair.get("calibration_texts")) is not None:
            parts.append(f"{texts} calibration texts")
        parts += [
            f"{pair[f'validation_{unit}']} {unit}" for unit in ("pairs", "queries") if f"validation_{unit}" in pair
        ]
        validation = pair.get("validation_examples")
        for name, count in validation.items() if isinstance(validation, Mapping) else ():
            parts.append(f"{count} validation examples" + ("" if name == "validation" else f" of {name}"))
        if (length := pair.get("max_length")) is not None:
            parts.append(f"T\u00a0=\u00a0{length}")
        return ", ".join(parts)

    def _about(self, encoder: str, task: str) -> Mapping[str, Any]:
        return self._about_pairs.get((encoder, task), {})

    @cached_property
    def _about_pairs(self) -> dict[tuple[Any, Any], Mapping[str, Any]]:
        pairs = self.about.get("pairs")
        known = [one for one in (pairs if isinstance(pairs, list) else []) if isinstance(one, Mapping)]
        return {(str(one.get("encoder")), str(one.get("task"))): one for one in reversed(known)}

    def level_weights(self, encoder: str, task: str) -> pd.DataFrame:
        """The probe's weights by level at shares 0 and 1: columns share, level, mean, low, high."""
        rows = self.table
        rows = rows[(rows["encoder"] == encoder) & (rows["task"] == task) & (rows["constants"] == "average")]
        found: dict[tuple[float, int], list[float]] = {}
        for share in (0.0, 1.0):
            # The criterion does not matter at these shares: several rows share a file.
            for name in dict.fromkeys(rows.loc[rows["share"] == share, "hash"]):
                path = StudyFolder(self.folder).cell(name)
                weights = CellResult.load(path).level_weights if path.is_file() else None
                for level, weight in enumerate(weights or ()):
                    found.setdefault((share, level), []).append(weight)
        lines = [(share, level, *mean_interval(values)) for (share, level), values in found.items()]
        return pd.DataFrame(lines, columns=["share", "level", "mean", "low", "high"])


def read_study(folder: str | Path) -> StudyData:
    """Read the data of a report."""
    place = Path(folder).expanduser()
    content = StudyFolder(place).read()
    files = content["files"]
    constants, rankings = (
        [NamedFile(one["encoder"], one["task"], one[name], place / one["path"]) for one in files.get(key, [])]
        for key, name in NAMED.items()
    )
    evidence = Evidence.read(place)
    if not evidence.table["score"].notna().any():
        raise StudyError(f"the study in {str(place)!r} has no finished result yet: run `papa study` first.")
    return StudyData(
        folder=place,
        evidence=evidence,
        settings=content["settings"],
        about=content["about"],
        constants=tuple(one for one in constants if one.path.is_file()),
        rankings=tuple(one for one in rankings if one.path.is_file()),
        missing=tuple(os.path.relpath(one.path, place) for one in [*constants, *rankings] if not one.path.is_file()),
    )
