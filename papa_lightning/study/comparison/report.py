"""The page and the figures of a study of kinds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from papa_lightning.errors import StudyError
from papa_lightning.figures.style import COLOURS, INK, interval_bars, label, new_figure, padded_limits, styled
from papa_lightning.files.writing import write_atomically
from papa_lightning.study.comparison.results import (
    KindResult,
    kinds_table,
    markdown_table,
    summarize_kinds,
    table_cells,
)
from papa_lightning.study.comparison.settings import KindsSettings
from papa_lightning.study.kinds_curve import one_number, score_curve
from papa_lightning.study.report.html import Figures, Section, facts, figure_grid, html_table, page, paragraph
from papa_lightning.study.store import StudyFolder

#: Column of the summary -> what its axis says, and the unit.
_PANELS: Mapping[str, tuple[str, float]] = {
    "score": ("{metric}", 1.0),
    "steps_per_second": ("steps per second", 1.0),
    "step_memory_bytes": ("memory of a step (MB)", 1e6),
    "parameters": ("parameters (thousands)", 1e3),
}

#: The least that an axis shows, as a share of the largest value: parameters that are equal to 0.1 % shall look equal.
_LEAST_SPAN = 0.05


def is_kinds_study(folder: str | Path) -> bool:
    """Whether the folder holds a study of kinds.

    Raises:
        StudyError: When it holds no study at all.
    """
    return "kinds" in StudyFolder(folder).read()["settings"]


def write_kinds_report(folder: str | Path) -> Path:
    """Write report.html, kinds.md and the figures of a study of kinds.

    Args:
        folder: Of the study, finished or not.

    Returns:
        Path of the page.

    Raises:
        PapaError: When the folder holds no such study, or nothing is finished.
    """
    store = StudyFolder(folder)
    noted = store.read()
    try:
        settings, seeds = KindsSettings(**noted["settings"]["kinds"]), list(noted["settings"]["seeds"])
    except (KeyError, TypeError) as error:
        raise StudyError(
            f"{str(store.path / 'study.json')!r} has no settings of a study of kinds ({error}): run `papa study` again."
        ) from error
    table = _finished(store, noted["files"])
    if not len(table):
        raise StudyError(f"{str(store.path)!r} has no finished training yet: run `papa study` first.")
    summary = summarize_kinds(table)
    write_atomically(store.path / "kinds.md", markdown_table(summary).encode())
    figures, caption, differing = Figures(store.path / "figures"), _caption(summary, settings), one_number(settings)
    drawn = [figures.add(kind_panels(summary), ("kinds",), caption)]
    if differing is not None:
        drawn.append(figures.add(score_curve(summary, table, *differing), ("curve",), caption))
    sections = [
        Section("kinds", "Kinds of attention", figure_grid(drawn, wide=True)),
        Section("table", "Table", _table(summary)),
        Section("measured", "How it was measured", facts(_about(settings, seeds, noted["about"]))),
    ]
    lead = paragraph("Models that differ in what mixes their tokens, trained for the same number of steps.")
    return write_atomically(store.path / "report.html", page("Kinds of attention", lead, sections).encode())


def _finished(store: StudyFolder, noted: object) -> pd.DataFrame:
    """The trainings of the last run, as far as they are finished; nothing else is needed, no data and no encoder."""
    cells = noted.get("cells") if isinstance(noted, Mapping) else None
    if not isinstance(cells, list) or not all(isinstance(name, str) for name in cells):
        raise StudyError(f"{str(store.path / 'study.json')!r} lacks the names of its cells: run `papa study` again.")
    files = [store.path / name for name in cells]
    return kinds_table(KindResult.load(file) for file in files if file.exists())


@styled
def kind_panels(summary: pd.DataFrame) -> Figure:
    """Score, speed, memory and size of each variant, with 95 % intervals; what was not measured is left out.

    Args:
        summary: Of :func:`~papa_lightning.study.comparison.results.summarize_kinds`.
    """
    names, places = [label(name) for name in summary["variant"]], np.arange(len(summary))[::-1]
    shown = {column: panel for column, panel in _PANELS.items() if summary[column].notna().any()}
    figure = new_figure(3.2 + 2.0 * len(shown), 1.2 + 0.3 * len(names))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for index, (axes, (column, (title, unit))) in enumerate(zip(panels, shown.items(), strict=True)):
        mean, low, high = (summary[f"{column}{end}"].to_numpy(float) / unit for end in ("", "_low", "_high"))
        kept = np.isfinite(mean)
        bars = interval_bars(mean, low, high)[:, kept]
        axes.errorbar(mean[kept], places[kept], xerr=bars, fmt="o", color=COLOURS[index], ecolor=INK, linewidth=1.1)
        axes.set_xlim(padded_limits((*mean, *low, *high), least_span=_LEAST_SPAN * float(np.nanmax(abs(mean)))))
        axes.set_xlabel(title.format(metric=summary["metric"].iloc[0].replace("_", " ")))
    panels[0].set_yticks(places, names)
    panels[0].set_ylim(-0.6, len(names) - 0.4)
    return figure


def _caption(summary: pd.DataFrame, settings: KindsSettings) -> str:
    return (
        f"Means and 95 % intervals (Student's t) over {summary['n'].max()} seeds, {settings.steps} steps each. The "
        "memory of a step is the most that one training step allocates at a moment."
    )


def _table(summary: pd.DataFrame) -> str:
    metric = summary["metric"].iloc[0].replace("_", " ")
    columns = ["variant", metric, "loss (nats)", "steps/s", "peak MB", "MB a step", "parameters", "seeds"]
    rows = [table_cells(row) for _, row in summary.iterrows()]
    return html_table(columns, rows, frozenset(columns[1:]))


def _about(settings: KindsSettings, seeds: list[int], about: Mapping[str, Any]) -> dict[str, Any]:
    told = {"task": settings.model, "data": settings.data, "steps": settings.steps, "seeds": seeds}
    return told | {"equal parameters": settings.equal_parameters, "precision": settings.precision, **about}
