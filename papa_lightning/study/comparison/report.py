"""The page and the figures of a comparison of kinds of attention."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from papa_lightning.errors import StudyError
from papa_lightning.figures.style import COLOURS, INK, MUTED, interval_bars, label, new_figure, padded_limits, styled
from papa_lightning.files.writing import write_atomically
from papa_lightning.study.comparison.results import KindResult, kinds_overview, kinds_table, summarize_kinds
from papa_lightning.study.comparison.settings import KindsSettings
from papa_lightning.study.report.sections import Block, Drawings, Facts, Figures, Sections, render
from papa_lightning.study.store import StudyFolder


def one_number(settings: KindsSettings) -> tuple[str, dict[str, float]] | None:
    """The one argument in which all variants differ, dotted if nested, and its values; None unless all are positive."""
    given = {name: dict(_flat(settings.arguments(name) | settings.swap(name))) for name in settings.variants}
    names = {argument for arguments in given.values() for argument in arguments}
    differing = [name for name in names if len({repr(arguments.get(name)) for arguments in given.values()}) > 1]
    if len(differing) != 1:
        return None
    values = {variant: arguments.get(differing[0]) for variant, arguments in given.items()}
    numbers = {
        variant: float(value)
        for variant, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    }
    return (differing[0], numbers) if len(numbers) == len(values) else None


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@styled
def score_curve(summary: pd.DataFrame, table: pd.DataFrame, name: str, numbers: Mapping[str, float]) -> Figure:
    """Score against the number in which variants differ: means with 95 % intervals, and the seeds behind them."""
    ordered = summary.assign(number=summary["variant"].map(numbers)).sort_values("number")
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    axes.plot(table["variant"].map(numbers), table["score"], "o", color=MUTED, markersize=3.5, label="single seeds")
    mean, low, high = (ordered[column].to_numpy(float) for column in ("score", "score_low", "score_high"))
    places = ordered["number"].to_numpy(float)
    bars = interval_bars(mean, low, high)
    axes.errorbar(places, mean, yerr=bars, fmt="o-", color=COLOURS[0], ecolor=INK, label="mean, 95 %")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(places))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{np.round(value, 6):g}")
    metric = str(summary["metric"].iloc[0])
    axes.set(xlabel=name.rpartition(".")[2].replace("_", " "), ylabel=metric.replace("_", " "))
    axes.legend()
    return figure


#: Label of the axis and its unit, by column of the summary.
_PANELS: Mapping[str, tuple[str, float]] = {
    "score": ("{metric}", 1.0),
    "steps_per_second": ("steps per second", 1.0),
    "step_memory_bytes": ("memory of a step (MB)", 1e6),
    "parameters": ("parameters (thousands)", 1e3),
}

#: Shortest span of an axis as a share of the largest value: parameters that are equal to 0.1 % should look equal.
_LEAST_SPAN = 0.05


def is_kinds_study(folder: str | Path) -> bool:
    """Whether a folder holds a comparison of kinds of attention."""
    return "kinds" in StudyFolder(folder).read()["settings"]


#: The sections of the page.
COMPARISON_SECTIONS = Sections()


@dataclass(frozen=True)
class ComparisonData:
    """The data of the page."""

    settings: KindsSettings
    seeds: Sequence[int]
    about: Mapping[str, Any]
    table: pd.DataFrame
    summary: pd.DataFrame


def write_kinds_report(folder: str | Path) -> Path:
    """Write report.html, kinds.md and the figures of a comparison of kinds of attention; returns the page's path.

    Args:
        folder: Folder of the study, finished or not.

    Raises:
        PapaError: When the folder holds no such study, or nothing is finished.
    """
    store, data = StudyFolder(folder), read_kinds(folder)
    write_atomically(store.path / "kinds.md", (kinds_overview(data.summary).markdown() + "\n").encode())
    sections = COMPARISON_SECTIONS.built(data, Figures(store.path / "figures"))
    lead = "Models that differ in what mixes their tokens, trained for the same number of steps."
    return write_atomically(store.path / "report.html", render("Kinds of attention", lead, sections).encode())


def read_kinds(folder: str | Path) -> ComparisonData:
    """Read the data of a comparison of kinds; a PapaError where there is none, or nothing is finished."""
    store = StudyFolder(folder)
    noted = store.read()
    try:
        settings, seeds = KindsSettings(**noted["settings"]["kinds"]), list(noted["settings"]["seeds"])
    except (KeyError, TypeError) as error:
        raise StudyError(
            f"{str(store.path / 'study.json')!r} has no settings of a comparison of kinds ({error}): run `papa study` "
            "again."
        ) from error
    cells = noted["files"].get("cells")
    if cells is None:
        raise StudyError(f"{str(store.path / 'study.json')!r} lacks the names of its cells: run `papa study` again.")
    files = [store.path / name for name in cells]
    table = kinds_table(KindResult.load(file) for file in files if file.exists())
    if not len(table):
        raise StudyError(f"{str(store.path)!r} has no finished training yet: run `papa study` first.")
    return ComparisonData(settings, seeds, noted["about"], table, summarize_kinds(table))


@COMPARISON_SECTIONS.section("kinds", "Kinds of attention", place=10)
def figure_section(data: ComparisonData, figures: Figures) -> list[Block]:
    """Score, speed, memory and size of every variant, and a curve where variants differ in one number."""
    caption = (
        f"Means and 95 % intervals (Student's t) over {data.summary['n'].max()} seeds, {data.settings.steps} steps "
        "each. The memory of a step is the most that one training step allocates at a moment."
    )
    drawn, differing = [figures.add(kind_panels(data.summary), ("kinds",), caption)], one_number(data.settings)
    if differing is not None:
        drawn.append(figures.add(score_curve(data.summary, data.table, *differing), ("curve",), caption))
    return [Drawings(drawn, wide=True)]


@COMPARISON_SECTIONS.section("table", "Table", place=20)
def table_section(data: ComparisonData, figures: Figures) -> list[Block]:
    """The numbers of every variant."""
    return [kinds_overview(data.summary)]


@COMPARISON_SECTIONS.section("measured", "How it was measured", place=30)
def measured_section(data: ComparisonData, figures: Figures) -> list[Block]:
    """Task, data, steps and versions."""
    settings = data.settings
    facts = {"task": settings.model, "data": settings.data, "steps": settings.steps, "seeds": data.seeds}
    facts |= {"equal parameters": settings.equal_parameters, "precision": settings.precision}
    return [Facts({**facts, **data.about})]


@styled
def kind_panels(summary: pd.DataFrame) -> Figure:
    """Score, speed, memory and size of each variant, with 95 % intervals; unmeasured quantities are left out."""
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
