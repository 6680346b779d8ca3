"""Points at few shares: kinds of constants, encoders."""

import math
import string
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from papa_lightning.figures import style


@style.styled
def control_points(summary: pd.DataFrame, title: str, baseline: float) -> Figure:
    """Score by kind of constants, as points, whose axis need not start at 0; the baseline is NaN for none."""
    kinds, shares = list(dict.fromkeys(summary["constants"])), sorted(set(summary["share"]))
    figure = style.new_figure(5.6, 1.7 + 0.34 * len(kinds))
    axes = figure.subplots()
    handles: list[object] = []
    for index, share in enumerate(shares):
        rows = summary[summary["share"] == share].set_index("constants").reindex(kinds)
        mean, bars = style.estimates(rows)
        places = np.arange(len(kinds)) + (index - (len(shares) - 1) / 2) * 0.3
        look = style.series_style(index) | {"linestyle": "none"}
        handles.append(axes.errorbar(mean, places, xerr=bars, **look))
    labels = style.share_labels(shares)
    if math.isfinite(baseline):
        handles.append(style.reference_line(axes, baseline, vertical=True))
        labels.append("all heads dynamic")
    values = [float(value) for name in ("mean", "low", "high") for value in summary[name]]
    axes.set_xlim(*style.padded_limits([*values, baseline], 0.1 * abs(baseline) if math.isfinite(baseline) else 0.0))
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_yticks(range(len(kinds)), [style.label(kind, 26) for kind in kinds])
    axes.set(xlabel=style.label(summary["metric"].iloc[0]), ylabel="constants", title=style.label(title, 58))
    style.legend_below(figure, handles, labels)
    return figure


@style.styled
def drop_against_baseline(points: pd.DataFrame) -> Figure:
    """Relative drop with all heads constant against the score with all heads dynamic, of encoders and tasks.

    Source of the question ("better models lose more"): Hassid et al. 2022, arXiv 2211.03495.
    """
    encoders, tasks = (list(dict.fromkeys(points[column])) for column in ("encoder", "task"))
    figure = style.new_figure(6.4, 4.6)
    axes = figure.subplots()
    for row in points.itertuples():
        number, place = encoders.index(row.encoder), (row.baseline, 100.0 * row.drop)
        axes.plot(*place, **_point(tasks.index(row.task), number))
        axes.annotate(_letter(number), place, (5, 4), textcoords="offset points", fontsize=8.5, color=style.INK)
    axes.axhline(0.0, color=style.INK, linewidth=0.8)
    axes.set_xlim(*style.padded_limits(points["baseline"], 0.02))
    axes.set_ylim(*style.padded_limits([*(100.0 * points["drop"]), 0.0], 5.0))
    score = "score with all heads dynamic (each task in its metric)"
    axes.set(xlabel=score, ylabel="relative drop, all heads constant (%)")
    letters = [Line2D([], [], linestyle="none") for _ in encoders]
    shapes = [Line2D([], [], **(_point(n, 0) | {"color": style.INK})) for n in range(len(tasks))]
    labels = [f"{_letter(n)}: {style.label(encoder)}" for n, encoder in enumerate(encoders)]
    style.legend_below(figure, [*shapes, *letters], [*(style.label(task, 20) for task in tasks), *labels])
    return figure


def _point(task: int, encoder: int) -> dict[str, Any]:
    colour, marker = style.COLOURS[encoder % len(style.COLOURS)], style.series_style(task)["marker"]
    return {"marker": marker, "color": colour, "linestyle": "none", "markersize": 7}


def _letter(number: int) -> str:
    """A, B, ..., Z, A1, B1, ...

    Example:
        >>> _letter(0), _letter(27)
        ('A', 'B1')
    """
    rounds, place = divmod(number, 26)
    return string.ascii_uppercase[place] + (str(rounds) if rounds else "")
