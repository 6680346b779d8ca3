"""Bars and points at few shares: relative drops of tasks, kinds of constants, encoders."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from papa_lightning.figures.style import (
    COLOURS,
    INK,
    interval_bars,
    label,
    legend_below,
    new_figure,
    padded_limits,
    reference_line,
    series_style,
    styled,
)

_HATCHES = ("////", "", "....", "xxxx")


@styled
def drop_bars(summary: pd.DataFrame, title: str) -> Figure:
    """Relative drop of the score by task, one bar a share, of one encoder and one criterion a task."""
    tasks, shares = list(dict.fromkeys(summary["task"])), sorted(set(summary["share"]))
    figure = new_figure(max(5.6, 1.0 + 1.05 * len(tasks)), 3.8)
    axes = figure.subplots()
    width = 0.8 / len(shares)
    handles, ends = [], [0.0]
    for index, share in enumerate(shares):
        rows = summary[summary["share"] == share].set_index("task").reindex(tasks)
        mean = -100.0 * rows["relative"].to_numpy(float)
        low, high = (-100.0 * rows[name].to_numpy(float) for name in ("relative_high", "relative_low"))
        places = np.arange(len(tasks)) + (index - (len(shares) - 1) / 2) * width
        colour = COLOURS[index % len(COLOURS)]
        handles.append(
            axes.bar(
                places,
                np.nan_to_num(mean),
                0.92 * width,
                color=colour,
                edgecolor=INK,
                linewidth=0.6,
                hatch=_HATCHES[index % 4],
            )
        )
        kept = np.isfinite(mean)
        bars = interval_bars(mean, low, high)[:, kept]
        axes.errorbar(places[kept], mean[kept], yerr=bars, color=INK, linestyle="none", linewidth=1.1)
        ends += [float(value) for value in np.concatenate([mean, low, high]) if math.isfinite(value)]
    axes.axhline(0.0, color=INK, linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(*_limits_from_zero(ends))
    axes.set_xlim(-0.6, len(tasks) - 0.4)
    _task_axis(axes, tasks)
    axes.set_ylabel("relative drop (%)")
    axes.set_title(label(title, 58))
    legend_below(figure, handles, [f"{100 * share:.3g} % of the heads constant" for share in shares])
    return figure


@styled
def control_points(summary: pd.DataFrame, title: str, baseline: float) -> Figure:
    """Score by kind of constants, as points, whose axis need not start at 0; the baseline is NaN for none."""
    kinds, shares = list(dict.fromkeys(summary["constants"])), sorted(set(summary["share"]))
    figure = new_figure(5.6, 1.7 + 0.34 * len(kinds))
    axes = figure.subplots()
    handles: list[object] = []
    for index, share in enumerate(shares):
        rows = summary[summary["share"] == share].set_index("constants").reindex(kinds)
        mean, low, high = (rows[name].to_numpy(float) for name in ("mean", "low", "high"))
        places = np.arange(len(kinds)) + (index - (len(shares) - 1) / 2) * 0.3
        style = series_style(index) | {"linestyle": "none"}
        handles.append(axes.errorbar(mean, places, xerr=interval_bars(mean, low, high), **style))
    labels = [f"{100 * share:.3g} % of the heads constant" for share in shares]
    if math.isfinite(baseline):
        handles.append(reference_line(axes, baseline, vertical=True))
        labels.append("all heads dynamic")
    values = [float(value) for name in ("mean", "low", "high") for value in summary[name]]
    axes.set_xlim(*padded_limits([*values, baseline], 0.1 * abs(baseline) if math.isfinite(baseline) else 0.0))
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_yticks(range(len(kinds)), [label(kind, 26) for kind in kinds])
    axes.set_ylabel("constants")
    axes.set_xlabel(label(summary["metric"].iloc[0]))
    axes.set_title(label(title, 58))
    legend_below(figure, handles, labels)
    return figure


@styled
def drop_against_baseline(points: pd.DataFrame) -> Figure:
    """Relative drop with all heads constant against the score with all heads dynamic, of encoders and tasks.

    Source of the question ("better models lose more"): Hassid et al. 2022, arXiv 2211.03495.
    """
    encoders, tasks = (list(dict.fromkeys(points[column])) for column in ("encoder", "task"))
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    for encoder, task, baseline, drop in zip(
        points["encoder"], points["task"], points["baseline"], points["drop"], strict=True
    ):
        number = encoders.index(encoder)
        axes.plot([baseline], [100.0 * drop], **_point(tasks.index(task), number))
        axes.annotate(
            _letter(number), (baseline, 100.0 * drop), (5, 4), textcoords="offset points", fontsize=8.5, color=INK
        )
    axes.axhline(0.0, color=INK, linewidth=0.8)
    axes.set_xlim(*padded_limits(points["baseline"], 0.02))
    axes.set_ylim(*padded_limits([*(100.0 * points["drop"]), 0.0], 5.0))
    axes.set_xlabel("score with all heads dynamic (each task in its metric)")
    axes.set_ylabel("relative drop, all heads constant (%)")
    letters = [Line2D([], [], linestyle="none") for _ in encoders]
    shapes = [Line2D([], [], **(_point(n, 0) | {"color": INK})) for n in range(len(tasks))]
    labels = [f"{_letter(n)}: {label(encoder)}" for n, encoder in enumerate(encoders)]
    legend_below(figure, [*shapes, *letters], [*(label(task, 20) for task in tasks), *labels])
    return figure


def _task_axis(axes: Axes, tasks: Sequence[str]) -> None:
    many = len(tasks) > 4 or max(map(len, map(str, tasks))) > 9
    axes.set_xticks(range(len(tasks)), [label(task, 20) for task in tasks], ha="right" if many else "center")
    axes.tick_params(axis="x", rotation=30 if many else 0, length=0)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("task")


def _point(task: int, encoder: int) -> dict[str, Any]:
    style = series_style(task)
    return {
        "marker": style["marker"],
        "color": COLOURS[encoder % len(COLOURS)],
        "linestyle": "none",
        "markersize": 7,
    }


def _letter(number: int) -> str:
    """A, B, ..., Z, A1, B1, ...

    Example:
        >>> _letter(0), _letter(27)
        ('A', 'B1')
    """
    rounds, place = divmod(number, 26)
    return string.ascii_uppercase[place] + (str(rounds) if rounds else "")


def _limits_from_zero(ends: Sequence[float]) -> tuple[float, float]:
    """Limits that include 0, where bars start, and are not so tight that noise fills them."""
    low, high = min(ends), max(ends)
    high = max(high, low + 2.0)
    return (1.1 * low if low < 0 else 0.0), (1.1 * high if high > 0 else 0.0)
