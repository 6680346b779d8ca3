"""The page and the figures of a study of kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from papa_lightning.errors import StudyError
from papa_lightning.figures.style import COLOURS, INK, MUTED, interval_bars, label, new_figure, padded_limits, styled
from papa_lightning.files.writing import write_atomically
from papa_lightning.study.comparison.results import (
    KindResult,
    kinds_table,
    markdown_table,
    summarize_kinds,
    table_cells,
)
from papa_lightning.study.comparison.settings import KindsSettings
from papa_lightning.study.report.html import Figures, Section, facts, figure_grid, html_table, page, paragraph
from papa_lightning.study.store import StudyFolder


def one_number(settings: KindsSettings) -> tuple[str, dict[str, float]] | None:
    """The one argument in which all variants differ, if it is a positive number in each.

    Returns:
        Its name, such as "num_heads" or "kind_options.window", and the number of each variant; None if they differ in
        something else, in more, or in nothing.

    Example:
        >>> task = {"class_path": "LanguageModelingTask", "init_args": {"num_heads": 4}}
        >>> data = {"class_path": "TextFileDataModule"}
        >>> one_number(KindsSettings(model=task, data=data, variants={"four": {}, "one": {"num_heads": 1}}))
        ('num_heads', {'four': 4.0, 'one': 1.0})
    """
    given = {name: dict(_flat(settings.arguments(name) | settings.swap(name))) for name in settings.variants}
    names = {argument for arguments in given.values() for argument in arguments}
    differing = [name for name in names if len({repr(arguments.get(name)) for arguments in given.values()}) > 1]
    if len(differing) != 1:
        return None
    values = {variant: arguments.get(differing[0]) for variant, arguments in given.items()}
    numbers = {variant: float(value) for variant, value in values.items() if value is not None and _is_positive(value)}
    return (differing[0], numbers) if len(numbers) == len(values) else None


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@styled
def score_curve(summary: pd.DataFrame, table: pd.DataFrame, name: str, numbers: Mapping[str, float]) -> Figure:
    """Score against the number, means with 95 % intervals and the single seeds behind them; logarithmic to base 2.

    Args:
        summary: Of :func:`~papa_lightning.study.comparison.results.summarize_kinds`.
        table: Of :func:`~papa_lightning.study.comparison.results.kinds_table`.
        name: Of the argument, as :func:`one_number` gives it.
        numbers: Of each variant.
    """
    ordered = summary.assign(number=summary["variant"].map(numbers)).sort_values("number")
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    axes.plot(table["variant"].map(numbers), table["score"], "o", color=MUTED, markersize=3.5, label="single seeds")
    mean, low, high = (ordered[column].to_numpy(float) for column in ("score", "score_low", "score_high"))
    places = ordered["number"].to_numpy(float)
    axes.errorbar(
        places, mean, yerr=interval_bars(mean, low, high), fmt="o-", color=COLOURS[0], ecolor=INK, label="mean, 95 %"
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(places))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{np.round(value, 6):g}")
    axes.set_xlabel(name.rpartition(".")[2].replace("_", " "))
    axes.set_ylabel(str(summary["metric"].iloc[0]).replace("_", " "))
    axes.legend()
    return figure


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
