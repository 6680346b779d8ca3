"""Style of the figures, and their conversion to bytes, without changes of matplotlib's global state."""

import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, ParamSpec

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

#: Colours of text and axes, and of the background. The report replaces both by its light or dark colours.
INK, GROUND = "#1b1b1d", "#fefefd"
#: Colour of grid and reference lines, readable on a light and on a dark background.
MUTED = "#808084"
#: Okabe and Ito's colours, which readers with colour blindness can distinguish, without black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9A7B4F", "#7F66B5")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
# Without "--", which is the line of share 0.
_LINES: tuple[Any, ...] = ("-", (0, (1, 1.4)), "-.", (0, (9, 1.5)))
#: Longest label in a figure; the report has the whole name in its text.
LABEL_LENGTH = 30

_STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": MUTED,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "figure.facecolor": GROUND,
    "axes.facecolor": "none",
    "savefig.facecolor": GROUND,
    "legend.frameon": False,
    "lines.markersize": 5.5,
    "lines.linewidth": 1.5,
    "errorbar.capsize": 3,
    "hatch.linewidth": 0.7,
    "text.parse_math": False,  # a name with two dollar signs is a name, not a formula
    "svg.fonttype": "path",  # looks the same where the font is missing
    "savefig.dpi": 150,
}

_P = ParamSpec("_P")


def styled(plot: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Decorator that runs a plot function in the style of the figures, whatever the matplotlib settings are."""

    @functools.wraps(plot)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with matplotlib.style.context(_STYLE, after_reset=True):
            return plot(*args, **kwargs)

    return run


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """An empty figure without a window, in inches; "compressed" is for images of a fixed ratio of sides."""
    return ShownFigure(figsize=(width, height), layout=layout)


class ShownFigure(Figure):
    """A figure that a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        return as_png(self, NOTEBOOK_DPI)


def as_png(figure: Figure, dpi: int | None = None) -> bytes:
    """A figure as PNG, the same bytes each time; `dpi` None takes that of files."""
    settings = {} if dpi is None else {"savefig.dpi": dpi}
    return _saved(figure, "png", {}, **settings)


#: Pixels an inch of figures in notebooks, which hold every image that they show.
NOTEBOOK_DPI = 90


def as_svg(figure: Figure, salt: str) -> bytes:
    """A figure as SVG, the same bytes each time.

    Args:
        figure: The figure.
        salt: Salt of the ids in the file.
    """
    return _saved(figure, "svg", {"Date": None}, **{"svg.hashsalt": salt})


def _saved(figure: Figure, kind: str, metadata: dict[str, Any], **settings: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.style.context({**_STYLE, **settings}, after_reset=True):
        if figure.get_layout_engine() is not None:
            # The layout is computed once for all formats: it takes most of the time, and would differ a little with the
            # resolution. Without a layout engine matplotlib does not draw again before it saves.
            figure.draw_without_rendering()
            figure.set_layout_engine(None)
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def series_style(index: int) -> dict[str, Any]:
    """Colour, marker and line of one series; marker and line together differ for the first 48.

    Example:
        >>> len({(one["marker"], str(one["linestyle"])) for one in map(series_style, range(48))})
        48
    """
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[(index + index // len(_MARKERS)) % len(_LINES)],
    }


def label(name: object, length: int = LABEL_LENGTH) -> str:
    """A name on one line, cut in the middle when it is long.

    Example:
        >>> label("sentence-transformers/all-MiniLM-L6-v2", 21)
        'sentence-t…niLM-L6-v2'
    """
    text = " ".join(str(name).split())
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def interval_bars(mean: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    """Lengths of error bars below and above the mean, shape (2, N); 0 where there is no interval."""
    lengths = np.stack([mean - low, high - mean])
    return np.where(np.isfinite(lengths), np.maximum(lengths, 0.0), 0.0)


def estimates(
    rows: pd.DataFrame, names: Sequence[str] = ("mean", "low", "high"), unit: float = 1.0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Means (N,) of the rows of a summary, and the lengths (2, N) of their error bars."""
    mean, low, high = (unit * rows[name].to_numpy(float) for name in names)
    return mean, interval_bars(mean, low, high)


def share_labels(shares: Iterable[float]) -> list[str]:
    """Labels of shares of constant heads for a legend."""
    return [f"{100 * share:.3g} % of the heads constant" for share in shares]


def padded_limits(values: Iterable[float], least_span: float, margin: float = 0.08) -> tuple[float, float]:
    """Limits of an axis that hold all finite values, and a least span, so that noise does not look large.

    `margin` is the share of the span that stays free at either end.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    missing = max(least_span - (high - low), 0.0)
    low, high = low - missing / 2, high + missing / 2
    free = margin * ((high - low) or 1.0)
    return low - free, high + free


def share_axis(axes: Axes, shares: Sequence[float]) -> None:
    """The horizontal axis of every curve, from 0 to 100 % of the heads; labels that would overlap are left out."""
    ticks: list[float] = []
    for share in [1.0, *sorted(shares)]:
        if all(abs(share - other) >= 0.07 for other in ticks):
            ticks.append(share)
    axes.set_xticks([100.0 * share for share in sorted(ticks)], [f"{100.0 * share:.3g}" for share in sorted(ticks)])
    axes.set(xlim=(-4.0, 104.0), xlabel="share of constant heads (%)")


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend below all axes, where it covers no data."""
    # Before version 3.10 matplotlib hides labels that begin with an underscore.
    labels = [f" {text}" if text.startswith("_") else text for text in labels]
    longest = max((len(text) for text in labels), default=1)
    fitting = max(1, int(figure.get_figwidth() * 13 / (longest + 7)))
    columns = math.ceil(len(labels) / math.ceil(len(labels) / fitting))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.2)


def reference_line(axes: Axes, value: float, *, vertical: bool = False) -> Line2D:
    """The dashed line of the score with all heads dynamic."""
    draw = axes.axvline if vertical else axes.axhline
    return draw(value, color=MUTED, linestyle="--", linewidth=1.2, zorder=1)
