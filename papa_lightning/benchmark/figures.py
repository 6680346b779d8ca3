"""Figures of a benchmark, and the files that it leaves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator

from papa_lightning.benchmark.growth import AXES, QUANTITIES, Growth, growths
from papa_lightning.benchmark.results import BenchmarkResult
from papa_lightning.benchmark.tables import input_name, markdown, variant_name
from papa_lightning.figures import style
from papa_lightning.files.writing import write_atomically

_SHAPE = ["encoder", "hidden", "layers", "heads"]
_VARIANT = ["kind", "share", "backend", "work"]
_UNITS = {"seconds": "s", "memory": "B"}


def write_benchmark(result: BenchmarkResult, folder: str | Path) -> list[Path]:
    """Write results, a Markdown table, and without sections a figure: growth where there are points for it, or speed.

    Args:
        result: Result of :func:`~papa_lightning.benchmark.run_benchmark`.
        folder: The folder; made when missing.

    Returns:
        Paths of ``results.json``, ``results.csv``, ``results.md``, and of ``speed`` or ``growth`` as SVG and PNG.
    """
    folder, table = Path(folder), result.table()
    written = [*result.save(folder), write_atomically(folder / "results.md", markdown(result).encode())]
    if result.settings.get("sections"):  # other sizes and dtypes, which one figure does not compare
        return written
    if found := growths(table):
        name, figure = "growth", growth_figure(found)
    elif (table["kind"] != "stock").any():
        name, figure = "speed", speed_figure(table)
    else:
        return written
    return [
        *written,
        write_atomically(folder / f"{name}.svg", style.as_svg(figure, name)),
        write_atomically(folder / f"{name}.png", style.as_png(figure)),
    ]


@style.styled
def speed_figure(table: pd.DataFrame) -> Figure:
    """Speed relative to the stock encoder: a panel for each shape, a bar for each variant, the bound as a mark."""
    rows = table[~((table["kind"] == "stock") & (table["speed"] == 1))]
    shapes = list(rows.groupby(_SHAPE, sort=False))
    names = list(dict.fromkeys(variant_name(*values) for values in rows[_VARIANT].itertuples(index=False)))
    figure = style.new_figure(max(5.6, 1.2 + 3.4 * len(shapes)), 4.2)
    panels = figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
    for axes, (shape, own) in zip(panels, shapes, strict=True):
        _bars(axes, own, names)
        encoder, hidden, layers, heads = shape
        axes.set_title(style.label(f"{encoder}, d {hidden}, {layers} layers, {heads} heads", 44))
    panels[0].set_ylabel("times as fast as the stock encoder")
    handles: list[Any] = [Line2D([], [], color=style.series_style(i)["color"], linewidth=7) for i in range(len(names))]
    handles += [Line2D([], [], color=style.INK, linewidth=2), style.reference_line(panels[0], 1.0)]
    style.legend_below(figure, handles, [*names, "bound of the arithmetic", "stock encoder"])
    return figure


def _bars(axes: Axes, rows: pd.DataFrame, names: Sequence[str]) -> None:
    inputs = list(dict.fromkeys(map(_input_of, rows.itertuples(index=False))))
    width = 0.8 / len(names)
    for row in rows.itertuples(index=False):
        index = names.index(variant_name(row.kind, row.share, row.backend, row.work))
        x = inputs.index(_input_of(row)) + (index - (len(names) - 1) / 2) * width
        limits = [np.array([value]) for value in (row.speed, row.speed_low, row.speed_high)]
        colour, bars = style.series_style(index)["color"], style.interval_bars(*limits)
        axes.bar(x, row.speed, 0.9 * width, color=colour, yerr=bars, ecolor=style.INK, capsize=2)
        if row.bound is not None and math.isfinite(row.bound):
            ends = [x - width / 2, x + width / 2]
            axes.plot(ends, [row.bound] * 2, color=style.INK, linewidth=2, solid_capstyle="butt")
    if axes is not axes.figure.axes[0]:
        style.reference_line(axes, 1.0)
    axes.set_xticks(range(len(inputs)), inputs)
    axes.set_xlabel("sequences x tokens")
    axes.grid(visible=False, axis="x")


def _input_of(row: Any) -> str:
    return input_name(row.batch, row.length, row.padding)


@style.styled
def growth_figure(found: Sequence[Growth]) -> Figure:
    """Time and memory against tokens, layers or heads, on logarithmic axes, with fitted lines and exponents."""
    columns = [axis for axis in AXES if any(one.axis == axis for one in found)]
    rows = [quantity for quantity in QUANTITIES if any(one.quantity == quantity for one in found)]
    names = list(dict.fromkeys(variant_name(*one.variant) for one in found))
    figure = style.new_figure(1.0 + 3.6 * len(columns), 0.9 + 3.1 * len(rows))
    panels = figure.subplots(len(rows), len(columns), sharey="row", squeeze=False)
    for quantity, line in zip(rows, panels, strict=True):
        for axis, axes in zip(columns, line, strict=True):
            shown = [one for one in found if one.axis == axis and one.quantity == quantity]
            for one in shown:
                _curve(axes, one, names.index(variant_name(*one.variant)))
            _log_axes(axes, sorted({size for one in shown for size, _ in one.points}), _UNITS[quantity])
            axes.set_xlabel(AXES[axis])
        line[0].set_ylabel(QUANTITIES[quantity])
    handles = [Line2D([], [], **style.series_style(index)) for index in range(len(names))]
    style.legend_below(figure, handles, names)
    return figure


def _curve(axes: Axes, one: Growth, index: int) -> None:
    sizes, values = (np.array(numbers) for numbers in zip(*one.points, strict=True))
    look = style.series_style(index)
    axes.plot(sizes, values, **look)
    upper = sizes[sizes >= one.fitted]
    # The line goes through the centre of the points that it was fitted to.
    level = np.exp(np.mean(np.log(values[sizes >= one.fitted]) - one.exponent * np.log(upper)))
    axes.plot(upper, level * upper**one.exponent, color=look["color"], linewidth=0.8, alpha=0.7)
    end, about = (sizes[-1], values[-1]), {"color": look["color"], "fontsize": 8, "va": "center"}
    axes.annotate(f"{one.exponent:.2f}", end, xytext=(5, 0), textcoords="offset points", **about)


def _log_axes(axes: Axes, sizes: Sequence[float], unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if math.log10(high / low) < 2 else (1.0,)))
    axes.yaxis.set_major_formatter(EngFormatter(unit))
    axes.tick_params(axis="x", labelrotation=45 if len(sizes) > 6 else 0)
