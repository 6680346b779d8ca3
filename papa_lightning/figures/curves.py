"""Curves: the score against the share of constant heads and against calibration size, and weights by level."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from papa_lightning.figures import style

#: Shortest span of an axis, as a share of the score with all heads dynamic: less would make noise look like a result.
LEAST_SPAN_OF_SCORE = 0.1
#: The same in percent.
LEAST_SPAN_OF_CHANGE = 5.0
#: Panels in a row.
_COLUMNS = 3


@style.styled
def score_curves(summary: pd.DataFrame, title: str) -> Figure:
    """Score against share of constant heads, one line for each criterion: the figure of the paper.

    Error bars are the intervals of the paired differences to the score with all heads dynamic, drawn around the score:
    one that does not reach the dashed line differs from it. The band below that line is the margin, and the one around
    "random" the standard deviation over its orders. Points say their values on a page.

    Args:
        summary: Rows of one encoder, task, metric and kind of constants.
        title: Title of the figure.

    Source: Hassid et al. 2022, arXiv 2211.03495.
    """
    figure = style.new_figure(5.6, 4.0)
    axes = figure.subplots()
    found = paired(summary)
    criteria, handles = list(dict.fromkeys(found["criterion"])), list[Any]()
    for index, criterion in enumerate(criteria):
        rows = found[found["criterion"] == criterion].sort_values("share")
        # A small shift, so that error bars of different criteria do not overlap.
        aside = (index - (len(criteria) - 1) / 2) * min(0.9, 4.0 / len(criteria))
        handles.append(_line(axes, rows, ("mean", "low", "high"), 1.0, aside, index))
        _spread(axes, rows, aside, index)
        _tips(axes, rows, aside)
    labels = [style.label(criterion) for criterion in criteria]
    baseline = _baseline(found)
    if math.isfinite(baseline):
        handles.append(style.reference_line(axes, baseline))
        labels.append("all heads dynamic")
        margin = float(found["margin"].iloc[0])
        handles.append(axes.axhspan(baseline - margin * abs(baseline), baseline, color=style.MUTED, alpha=0.15, lw=0))
        labels.append(f"margin, {100 * margin:.3g} %")
    means = found.sort_values("share")["mean"].dropna()
    span = LEAST_SPAN_OF_SCORE * abs(float(means.iloc[0])) if len(means) else 1.0
    axes.set_ylim(*style.padded_limits(_seen(found, ("mean", "low", "high")), span))
    style.share_axis(axes, sorted(set(found["share"])))
    axes.set(ylabel=style.label(found["metric"].iloc[0]), title=style.label(title, 58))
    style.legend_below(figure, handles, labels)
    return figure


def paired(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows with the intervals of their differences to share 0, drawn around its score; share 0 itself has none."""
    rows, baseline = summary.copy(), _baseline(summary)
    for name in ("low", "high"):
        rows[name] = (baseline + rows[f"difference_{name}"]).where(rows["share"] > 0)
    return rows


def _baseline(summary: pd.DataFrame) -> float:
    known = summary.loc[summary["share"] == 0.0, "mean"].dropna()
    return float(known.iloc[0]) if len(known) else math.nan


def _spread(axes: Axes, rows: pd.DataFrame, aside: float, index: int) -> None:
    """The band of one standard deviation over random orders."""
    deviation, mean = rows["ranking_deviation"].to_numpy(float), rows["mean"].to_numpy(float)
    if np.isfinite(deviation).any():
        places, half = 100.0 * rows["share"].to_numpy(float) + aside, np.nan_to_num(deviation)
        colour = style.COLOURS[index % len(style.COLOURS)]
        axes.fill_between(places, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def _tips(axes: Axes, rows: pd.DataFrame, aside: float) -> None:
    """Invisible points with their values in words as ids, which pages show where a pointer rests."""
    for row in rows[rows["mean"].notna()].itertuples():
        ends = f" ({row.low:.3f} to {row.high:.3f})" if math.isfinite(row.low) else ""
        text = f"tip: {row.criterion}, {100 * row.share:.3g} %: {row.mean:.3f}{ends}"
        axes.plot([100.0 * row.share + aside], [row.mean], "o", markersize=13, alpha=0.0, gid=text)


@style.styled
def relative_curves(summary: pd.DataFrame) -> Figure:
    """Relative change against share of constant heads: one panel for each task, one line for each encoder."""
    encoders, tasks = (list(dict.fromkeys(summary[column])) for column in ("encoder", "task"))
    columns = min(len(tasks), _COLUMNS)
    lines = math.ceil(len(tasks) / columns)
    figure = style.new_figure(max(5.6, 3.3 * columns), 2.7 * lines + 0.9)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    names = ("relative", "relative_low", "relative_high")
    limits = style.padded_limits([*(100.0 * value for value in _seen(summary, names)), 0.0], LEAST_SPAN_OF_CHANGE)
    handles: dict[str, ErrorbarContainer] = {}
    for axes, task in zip(grid.flat, tasks, strict=False):
        for index, encoder in enumerate(encoders):
            rows = summary[(summary["task"] == task) & (summary["encoder"] == encoder)].sort_values("share")
            if len(rows):
                aside = (index - (len(encoders) - 1) / 2) * min(0.9, 4.0 / len(encoders))
                handles[encoder] = _line(axes, rows, names, 100.0, aside, index)
        style.reference_line(axes, 0.0)
        style.share_axis(axes, [0.0, 0.25, 0.5, 0.75, 1.0])
        axes.set(ylim=limits, title=style.label(task))
    for axes in grid.flat[len(tasks) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("relative change (%)")
    known = [encoder for encoder in encoders if encoder in handles]
    style.legend_below(figure, [handles[encoder] for encoder in known], [style.label(encoder) for encoder in known])
    return figure


@style.styled
def sequences_curve(
    sequences: Sequence[int], summary: pd.DataFrame, title: str, baseline: float, average: float
) -> Figure:
    """Score with all heads constant against the number of sequences n >= 1 of each row of the summary.

    The baseline (share 0) and the average (constants of the whole calibration) are NaN for none.
    """
    figure = style.new_figure(5.6, 4.0)
    axes = figure.subplots()
    order = np.argsort(np.asarray(sequences))
    rows = summary.iloc[order]
    places = np.asarray(sequences, dtype=float)[order]
    mean, bars = style.estimates(rows)
    handles: list[Any] = [axes.errorbar(places, mean, yerr=bars, **style.series_style(0))]
    labels = ["n sequences"]
    if math.isfinite(average):
        handles.append(axes.axhline(average, color=style.MUTED, linestyle=":", linewidth=1.6, zorder=1))
        labels.append("whole calibration")
    if math.isfinite(baseline):
        handles.append(style.reference_line(axes, baseline))
        labels.append("all heads dynamic")
    seen = [*_seen(rows, ("mean", "low", "high")), baseline, average]
    span = LEAST_SPAN_OF_SCORE * abs(baseline if math.isfinite(baseline) else mean[0])
    axes.set_ylim(*style.padded_limits(seen, span))
    axes.set_xscale("log")
    axes.set_xlim(places.min() / 1.6, places.max() * 1.6)
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    metric = style.label(rows["metric"].iloc[0])
    axes.set(xlabel="sequences averaged, n (log scale)", ylabel=metric, title=style.label(title, 58))
    style.legend_below(figure, handles, labels)
    return figure


@style.styled
def level_curves(weights: pd.DataFrame, title: str) -> Figure:
    """The probe's weights by level (0 is the embeddings), with all heads dynamic and with all heads constant."""
    figure = style.new_figure(5.6, 3.8)
    axes = figure.subplots()
    shares = sorted(set(weights["share"]))
    handles = []
    for index, share in enumerate(shares):
        rows = weights[weights["share"] == share].sort_values("level")
        mean, bars = style.estimates(rows)
        places = rows["level"].to_numpy(float) + (index - (len(shares) - 1) / 2) * 0.12
        handles.append(axes.errorbar(places, mean, yerr=bars, **style.series_style(index)))
    last = int(weights["level"].max())
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_xticks(range(0, last + 1, max(1, math.ceil((last + 1) / 14))))
    top = max(_seen(weights, ("mean", "high")), default=1.0)
    axes.set_ylim(0.0, 1.08 * top if top > 0 else 1.0)
    level = "level (0: embeddings, l: after layer l)"
    axes.set(xlabel=level, ylabel="mean absolute weight", title=style.label(title, 58))
    style.legend_below(figure, handles, style.share_labels(shares))
    return figure


def _line(
    axes: Axes, rows: pd.DataFrame, names: tuple[str, str, str], unit: float, aside: float, index: int
) -> ErrorbarContainer:
    mean, bars = style.estimates(rows, names, unit)
    return axes.errorbar(100.0 * rows["share"].to_numpy(float) + aside, mean, yerr=bars, **style.series_style(index))


def _seen(rows: pd.DataFrame, names: Sequence[str]) -> list[float]:
    return [float(value) for name in names for value in rows[name] if math.isfinite(value)]
