"""Curves: score and relative change against the share of constant heads, and the score against calibration size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from papa_lightning.figures.style import (
    MUTED,
    interval_bars,
    label,
    legend_below,
    new_figure,
    padded_limits,
    reference_line,
    series_style,
    share_axis,
    styled,
)

#: Shortest span of an axis, as a share of the score with all heads dynamic, and in percent for relative changes: less
#: would make noise look like a result.
LEAST_SPAN_OF_SCORE = 0.1
LEAST_SPAN_OF_CHANGE = 5.0
_COLUMNS = 3


@styled
def score_curves(summary: pd.DataFrame, title: str) -> Figure:
    """Score against share of constant heads, one line for each criterion: the figure of the paper.

    Source:
        Hassid et al. 2022, arXiv 2211.03495. The summary is of one encoder, task, metric and kind of constants.
    """
    figure = new_figure(5.6, 4.0)
    axes = figure.subplots()
    criteria = list(dict.fromkeys(summary["criterion"]))
    handles: list[Any] = []
    for index, criterion in enumerate(criteria):
        rows = summary[summary["criterion"] == criterion].sort_values("share")
        # A small shift, so that error bars of different criteria do not overlap.
        aside = (index - (len(criteria) - 1) / 2) * min(0.9, 4.0 / len(criteria))
        handles.append(_line(axes, rows, ("mean", "low", "high"), 1.0, aside, index))
    labels = [label(criterion) for criterion in criteria]
    baseline = summary.loc[summary["share"] == 0.0, "mean"].dropna()
    if len(baseline):
        handles.append(reference_line(axes, float(baseline.iloc[0])))
        labels.append("all heads dynamic")
    axes.set_ylim(*padded_limits(_seen(summary, ("mean", "low", "high")), _least_span(summary)))
    share_axis(axes, sorted(set(summary["share"])))
    axes.set_ylabel(label(summary["metric"].iloc[0]))
    axes.set_title(label(title, 58))
    legend_below(figure, handles, labels)
    return figure


@styled
def relative_curves(summary: pd.DataFrame) -> Figure:
    """Relative change against share of constant heads: one panel for each task, one line for each encoder."""
    encoders, tasks = (list(dict.fromkeys(summary[column])) for column in ("encoder", "task"))
    columns = min(len(tasks), _COLUMNS)
    lines = math.ceil(len(tasks) / columns)
    figure = new_figure(max(5.6, 3.3 * columns), 2.7 * lines + 0.9)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    limits = padded_limits(
        [100.0 * value for value in _seen(summary, ("relative", "relative_low", "relative_high"))] + [0.0],
        LEAST_SPAN_OF_CHANGE,
    )
    handles: dict[str, ErrorbarContainer] = {}
    for axes, task in zip(grid.flat, tasks, strict=False):
        for index, encoder in enumerate(encoders):
            rows = summary[(summary["task"] == task) & (summary["encoder"] == encoder)].sort_values("share")
            if len(rows):
                aside = (index - (len(encoders) - 1) / 2) * min(0.9, 4.0 / len(encoders))
                names = ("relative", "relative_low", "relative_high")
                handles[encoder] = _line(axes, rows, names, 100.0, aside, index)
        reference_line(axes, 0.0)
        share_axis(axes, [0.0, 0.25, 0.5, 0.75, 1.0])
        axes.set_ylim(*limits)
        axes.set_title(label(task))
    for axes in grid.flat[len(tasks) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("relative change (%)")
    known = [encoder for encoder in encoders if encoder in handles]
    legend_below(figure, [handles[encoder] for encoder in known], [label(encoder) for encoder in known])
    return figure


@styled
def sequences_curve(
    sequences: Sequence[int], summary: pd.DataFrame, title: str, baseline: float, average: float
) -> Figure:
    """Score with all heads constant against the number of sequences n >= 1 of each row of the summary.

    The baseline (share 0) and the average (constants of the whole calibration) are NaN for none.
    """
    figure = new_figure(5.6, 4.0)
    axes = figure.subplots()
    order = np.argsort(np.asarray(sequences))
    rows = summary.iloc[order]
    places = np.asarray(sequences, dtype=float)[order]
    mean, low, high = (rows[name].to_numpy(float) for name in ("mean", "low", "high"))
    handles: list[Any] = [axes.errorbar(places, mean, yerr=interval_bars(mean, low, high), **series_style(0))]
    labels = ["n sequences"]
    if math.isfinite(average):
        handles.append(axes.axhline(average, color=MUTED, linestyle=":", linewidth=1.6, zorder=1))
        labels.append("whole calibration")
    if math.isfinite(baseline):
        handles.append(reference_line(axes, baseline))
        labels.append("all heads dynamic")
    seen = [*_seen(rows, ("mean", "low", "high")), baseline, average]
    axes.set_ylim(*padded_limits(seen, LEAST_SPAN_OF_SCORE * abs(baseline if math.isfinite(baseline) else mean[0])))
    axes.set_xscale("log")
    axes.set_xlim(places.min() / 1.6, places.max() * 1.6)
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sequences averaged, n (log scale)")
    axes.set_ylabel(label(rows["metric"].iloc[0]))
    axes.set_title(label(title, 58))
    legend_below(figure, handles, labels)
    return figure


@styled
def level_curves(weights: pd.DataFrame, title: str) -> Figure:
    """The probe's weights by level (0 is the embeddings), with all heads dynamic and with all heads constant."""
    figure = new_figure(5.6, 3.8)
    axes = figure.subplots()
    shares = sorted(set(weights["share"]))
    handles = []
    for index, share in enumerate(shares):
        rows = weights[weights["share"] == share].sort_values("level")
        mean, low, high = (rows[name].to_numpy(float) for name in ("mean", "low", "high"))
        aside = (index - (len(shares) - 1) / 2) * 0.12
        bars = interval_bars(mean, low, high)
        handles.append(axes.errorbar(rows["level"].to_numpy(float) + aside, mean, yerr=bars, **series_style(index)))
    last = int(weights["level"].max())
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_xticks(range(0, last + 1, max(1, math.ceil((last + 1) / 14))))
    top = max(_seen(weights, ("mean", "high")), default=1.0)
    axes.set_ylim(0.0, 1.08 * top if top > 0 else 1.0)
    axes.set_xlabel("level (0: embeddings, l: after layer l)")
    axes.set_ylabel("mean absolute weight")
    axes.set_title(label(title, 58))
    legend_below(figure, handles, [f"{100 * share:.3g} % of the heads constant" for share in shares])
    return figure


def _line(
    axes: Axes, rows: pd.DataFrame, names: tuple[str, str, str], unit: float, aside: float, index: int
) -> ErrorbarContainer:
    mean, low, high = (unit * rows[name].to_numpy(float) for name in names)
    return axes.errorbar(
        100.0 * rows["share"].to_numpy(float) + aside, mean, yerr=interval_bars(mean, low, high), **series_style(index)
    )


def _seen(rows: pd.DataFrame, names: Sequence[str]) -> list[float]:
    return [float(value) for name in names for value in rows[name] if math.isfinite(value)]


def _least_span(summary: pd.DataFrame) -> float:
    first = summary.sort_values("share")["mean"].dropna()
    return LEAST_SPAN_OF_SCORE * abs(float(first.iloc[0])) if len(first) else 1.0
