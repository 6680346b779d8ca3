"""Maps over layers and heads: scores of rankings, constant matrices, and how well they are covered by data."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from papa_lightning.figures.style import COLOURS, INK, label, new_figure, styled

#: Largest number of layers and heads in a grid of matrices, and pixels along the side of the grid.
MOST_LAYERS, MOST_HEADS, _SIDE = 12, 16, 480
#: Ratio of the largest to the median score from which colours are logarithmic.
_LOG_RATIO = 30.0
_MAP = "cividis"  # uniform in grey, and for readers with colour blindness


@styled
def head_maps(scores: Mapping[str, Tensor], title: str, quantity: str = "score") -> Figure:
    """Scores of the heads, one panel a criterion.

    Args:
        scores: Scores (L, H) by name of the criterion; NaN for heads without a score.
        title: Title of the figure.
        quantity: Label of the colour bar.
    """
    layers, heads = next(iter(scores.values())).shape
    width = min(4.6, max(2.9, 0.27 * heads + 1.3))
    height = min(5.0, max(2.0, 0.24 * layers + 1.0))
    columns = min(len(scores), int(9.3 // width))
    lines = math.ceil(len(scores) / columns)
    figure = new_figure(max(4.2, columns * width), lines * height + 0.4)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, (name, values) in zip(grid.flat, scores.items(), strict=False):
        table = values.detach().cpu().double().numpy()
        norm, unit = _norm(table)
        image = axes.imshow(table, norm=norm, cmap=_MAP, aspect="auto", interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.02, aspect=36)
        bar.set_label(f"{quantity}{unit}")
        if isinstance(norm, LogNorm):  # its default ticks are formulas, which the style does not render
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            bar.ax.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(label(name))
        axes.grid(visible=False)
        _whole_ticks(axes, 9)
        axes.set(xlabel="head", ylabel="layer", xlim=(-0.5, heads - 0.5), ylim=(layers - 0.5, -0.5))
    for axes in grid.flat[len(scores) :]:
        axes.remove()
    figure.suptitle(label(title, 64), fontsize=10.5, color=INK)
    return figure


def shown_layers(total: int) -> list[int]:
    """The layers in a grid: all up to 12, else 12 at even distances, with the first and the last.

    Example:
        >>> shown_layers(3)
        [0, 1, 2]
        >>> shown_layers(24)
        [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]
    """
    if total <= MOST_LAYERS:
        return list(range(total))
    return [round(place * (total - 1) / (MOST_LAYERS - 1)) for place in range(MOST_LAYERS)]


@styled
def constants_grid(values: Tensor, title: str, numbers: Sequence[int] | None = None) -> Figure:
    """Constant matrices as small multiples, layers by heads.

    Args:
        values: Matrices (L, H, T, T), of which :func:`shown_layers` and the first 16 heads are shown.
        title: Title of the figure.
        numbers: Number of each layer of `values`; None counts from 0.

    Returns:
        One image, in which each matrix is averaged down to 30 to 240 pixels; colours follow the square root.
    """
    layers, heads = shown_layers(values.shape[0]), list(range(min(values.shape[1], MOST_HEADS)))
    numbers = range(values.shape[0]) if numbers is None else numbers
    pixels = min(values.shape[2], max(16, _SIDE // max(len(layers), len(heads))))
    tiles = torch.nn.functional.adaptive_avg_pool2d(values[layers][:, heads].detach().cpu().double(), pixels)
    gap = max(2, pixels // 16)
    cell = pixels + gap
    sheet = np.full((len(layers) * cell - gap, len(heads) * cell - gap), np.nan)
    for row, column in np.ndindex(len(layers), len(heads)):
        tile = tiles[row, column].numpy()
        sheet[row * cell : row * cell + pixels, column * cell : column * cell + pixels] = tile
    side = max(0.35, min(0.6, 7.2 / len(heads)))
    figure = new_figure(max(4.2, side * len(heads) + 2.0), max(2.8, side * len(layers) + 1.0), "compressed")
    axes = figure.subplots()
    top = float(np.nanmax(sheet)) or 1.0
    image = axes.imshow(sheet, norm=PowerNorm(0.5, 0.0, top), cmap=_MAP, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=30).set_label("weight (square-root scale)")
    axes.set_xticks([column * cell + pixels / 2 for column in range(len(heads))], [str(head) for head in heads])
    axes.set_yticks([row * cell + pixels / 2 for row in range(len(layers))], [str(numbers[one]) for one in layers])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="head (in a matrix: keys →)", ylabel="layer (in a matrix: queries ↓)", title=label(title, 64))
    return figure


def thumbnail(matrix: Tensor, pixels: int = 48) -> bytes:
    """A constant matrix as a small PNG, the same bytes each time.

    Args:
        matrix: Weights (T, T), rows are queries.
        pixels: Largest side of the image, to which longer matrices are averaged down.

    Returns:
        The image; colours go from 0 to the largest weight, and follow the square root.
    """
    side = min(matrix.shape[0], pixels)
    tile = torch.nn.functional.adaptive_avg_pool2d(matrix.detach().cpu().double()[None], side)[0].numpy()
    buffer = io.BytesIO()
    image = colormaps[_MAP](PowerNorm(0.5, 0.0, float(tile.max()) or 1.0)(tile), bytes=True)
    imsave(buffer, image, format="png")
    return buffer.getvalue()


@styled
def coverage_histograms(pair_counts: Tensor, title: str) -> Figure:
    """Numbers of calibration sequences behind the entries of the constants.

    Args:
        pair_counts: Number (T, T) of sequences in which both positions held a real token.
        title: Title of the figure.
    """
    counts = pair_counts.detach().cpu().double().numpy()
    length, most = counts.shape[0], float(counts.max())
    figure = new_figure(6.4, 3.0)
    left, right = figure.subplots(1, 2)
    bins = np.linspace(0.0, max(most, 1.0), 21)
    left.hist(counts.ravel(), bins=bins, color=COLOURS[0], edgecolor="none", rwidth=0.9)
    left.set(xlabel="sequences behind an entry", ylabel="entries (query, key)", xlim=(0.0, bins[-1]))
    edges = np.arange(length + 1) - 0.5
    right.stairs(np.diagonal(counts), edges, fill=True, color=COLOURS[1])
    right.set(xlabel="position", ylabel="sequences with a real token")
    right.set(xlim=(-0.5, length - 0.5), ylim=(0.0, 1.08 * max(most, 1.0)))
    for axes in (left, right):
        _whole_ticks(axes, 6)
    figure.suptitle(label(title, 72), fontsize=10.5, color=INK)
    return figure


def _whole_ticks(axes: Axes, most: int) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=most, integer=True))


def _norm(table: NDArray[np.float64]) -> tuple[Normalize, str]:
    """A linear scale of colours, or a logarithmic one where a few large scores would hide the others."""
    finite = table[np.isfinite(table)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low > 0 and high / float(np.median(finite)) > _LOG_RATIO:
        return LogNorm(low, high), " (log scale)"
    if low == high:
        low, high = low - 0.5, high + 0.5
    return Normalize(low, high), ""
