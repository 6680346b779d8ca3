"""What Python and notebooks show of a study: its results as tables, figures and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from papa_lightning.errors import PapaError
from papa_lightning.figures.curves import relative_curves, score_curves
from papa_lightning.figures.html import notebook_html
from papa_lightning.study.comparison.encoders import compare_encoders
from papa_lightning.study.report.page import write_report
from papa_lightning.study.results import load_table
from papa_lightning.study.statistics import with_recovery
from papa_lightning.text import counted

if TYPE_CHECKING:
    from papa_lightning.study.settings import StudySettings
    from papa_lightning.study.statistics import Evidence
    from papa_lightning.study.store import StudyFolder


class StudyViews:
    """What a study shows of its finished results, read from its folder."""

    settings: StudySettings
    folder: StudyFolder

    @property
    def evidence(self) -> Evidence:
        """The results with the predictions behind them."""
        raise NotImplementedError

    def results(self) -> pd.DataFrame:
        """The finished results: a row for each probe and metric, plain numbers; see :func:`results_table`.

        Raises:
            ResultFileError: When there are none yet.
        """
        return load_table(self.folder.path)

    def summary(self) -> pd.DataFrame:
        """Means, intervals and verdicts of the tasks' own scores; see :func:`~papa_lightning.study.summarize`."""
        found = self.evidence.summary
        return found[found["is_score"].astype(bool)].reset_index(drop=True)

    def plot(self, encoder: str | None = None, task: str | None = None) -> Figure:
        """Figure of the score against the share of constant heads; of relative changes where there are several pairs.

        Args:
            encoder: Name of an encoder; None for all.
            task: Name of a task; None for all.

        Raises:
            PapaError: When there are no such results.
        """
        return curve_figure(self.evidence.summary, encoder, task)

    def compare(self) -> pd.DataFrame:
        """The encoders beside each other: a row for each task, criterion and share; see :func:`compare_encoders`."""
        return compare_encoders(self.evidence)

    def report(self) -> Path:
        """Write the report, and return the path of its page; see :func:`write_report`."""
        return write_report(self.folder.path)

    def __repr__(self) -> str:
        names = counted(len(self.settings.encoders), "encoder"), counted(len(self.settings.tasks), "task")
        done = len(list(self.folder.path.glob("cells/*.json")))
        results = counted(done, "finished result") if done else "no results yet"
        return f"Study({str(self.folder.path)!r}, {names[0]}, {names[1]}, {results})"

    def _repr_html_(self) -> str:
        try:
            return notebook_html(repr(self), self.plot(), self.compare())
        except PapaError:  # nothing is finished
            return notebook_html(repr(self))


def curve_figure(summary: pd.DataFrame, encoder: str | None = None, task: str | None = None) -> Figure:
    """The curves of averaged attention, and of trained encoders, in a summary; see :meth:`StudyViews.plot`."""
    rows = with_recovery(summary[summary["is_score"].astype(bool) & summary["mean"].notna()])
    for name, asked in (("encoder", encoder), ("task", task)):
        known = list(dict.fromkeys(rows[name]))
        if asked is not None and asked not in known:
            raise PapaError(f"{name} is {asked!r}, but there are results of {', '.join(known) or 'none'}.")
        rows = rows if asked is None else rows[rows[name] == asked]
    if not len(rows):
        raise PapaError("the study has no finished score yet: run it first.")
    found = rows[["encoder", "task"]].drop_duplicates()
    if len(found) == 1:
        return score_curves(rows, " · ".join(found.iloc[0]))
    return relative_curves(rows[rows["criterion"] == rows["criterion"].iloc[0]])
