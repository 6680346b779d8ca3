"""Growth of time and memory with the number of tokens, layers or heads: points and fitted exponents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy.stats import linregress

#: Names of the columns of the table of results that may grow.
AXES: Mapping[str, str] = {"length": "tokens T", "layers": "layers L", "heads": "heads H"}
#: Names of the quantities that grow.
QUANTITIES: Mapping[str, str] = {"seconds": "time of a batch", "memory": "memory above the encoder"}
_SIZES = ("encoder", "hidden", "layers", "heads", "batch", "length", "padding")
_VARIANT = ["kind", "share", "backend", "work"]
#: Fewest points of a fit: a line through two has no error.
LEAST_POINTS = 3


@dataclass(frozen=True)
class Growth:
    """Growth of one quantity of one variant along one axis.

    Args:
        axis: "length", "layers" or "heads".
        quantity: "seconds", or "memory": peak of a pass plus what the kind keeps.
        variant: Kind, share (None for a kind without shares), backend and work.
        points: Pairs of size and quantity, ascending.
        exponent: Exponent e of ``quantity ~ size^e``, fitted over the upper part of the sizes.
        error: Standard error of the exponent.
        fitted: Smallest size of the fit.
    """

    axis: str
    quantity: str
    variant: tuple[str, float | None, str, str]
    points: Sequence[tuple[float, float]]
    exponent: float
    error: float
    fitted: float


def growths(table: pd.DataFrame) -> list[Growth]:
    """Growth of every variant along every axis with enough points; other sizes are those of the first row.

    Args:
        table: Table of :meth:`~papa_lightning.benchmark.results.BenchmarkResult.table`.
    """
    if table.empty:
        return []
    base = table.iloc[0]
    table = table.assign(memory=table["peak_bytes"].astype(float) + table["held_bytes"])
    found = []
    for axis in AXES:
        others = [name for name in _SIZES if name != axis]
        rows = table[(table[others] == base[others]).all(axis=1)]
        for (kind, share, backend, work), own in rows.groupby(_VARIANT, sort=False, dropna=False):
            variant = kind, None if math.isnan(share) else share, backend, work
            for quantity in QUANTITIES:
                points = sorted((float(x), float(y)) for x, y in zip(own[axis], own[quantity], strict=True) if y > 0)
                if len(points) >= LEAST_POINTS:
                    found.append(Growth(axis, quantity, variant, points, *fit_exponent(points)))
    return found


def fit_exponent(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The exponent of a power law, by least squares between the logarithms.

    Only the points from the geometric mean of the ends on count, at least three: below, constant costs dominate.

    Args:
        points: Pairs of size and quantity, ascending, all above 0.

    Returns:
        The exponent, its standard error, and the smallest size of the fit.

    Example:
        >>> exponent, error, smallest = fit_exponent([(size, 3.0 * size**2) for size in (64, 256, 1024, 2048, 4096)])
        >>> round(exponent, 6), smallest
        (2.0, 1024)
    """
    middle = math.sqrt(points[0][0] * points[-1][0])
    upper = [point for point in points if point[0] >= middle]
    upper = upper if len(upper) >= LEAST_POINTS else list(points[-LEAST_POINTS:])
    line = linregress([math.log(size) for size, _ in upper], [math.log(value) for _, value in upper])
    return float(line.slope), float(line.stderr), upper[0][0]
