"""A summary as plain text for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

import pandas as pd

#: Characters of a line.
WIDTH = 100
_GAP = "  "


def format_summary(summary: pd.DataFrame) -> str:
    """The tasks' own scores as text: a table for each encoder, task and kind of constants.

    Rows are shares of constant heads, columns are criteria, and a cell reads ``0.812 ± 0.006 (-3.7 %)``: the mean, half
    of its 95 % interval, and the relative change against share 0. What is not known is left out of a cell; "-" stands
    for a cell without a score. Criteria that do not fit into 100 columns follow below.

    Args:
        summary: What :func:`~papa_lightning.study.statistics.summarize` made.

    Returns:
        Lines of up to 100 characters.

    Example:
        >>> from papa_lightning.study.results import CellResult, results_table
        >>> from papa_lightning.study.statistics import summarize
        >>> def cell(share: float, seed: int, score: float) -> CellResult:
        ...     scores, heads = {"f1": score}, int(4 * share)
        ...     return CellResult("bert", "sst2", "taylor", share, heads, 4, seed, "average", "f1", scores, 1.0, {}, "")
        >>> cells = [cell(0, 0, 0.80), cell(0, 1, 0.82), cell(1, 0, 0.78), cell(1, 1, 0.79)]
        >>> print(format_summary(summarize(results_table(cells))))
        bert on sst2: f1 (95 % interval and change against share 0; 2 probe seeds; constants: average)
         share  taylor
           0 %  0.810 ± 0.127
         100 %  0.785 ± 0.064 (-3.1 %)
    """
    own = summary[summary["is_score"].astype(bool)]
    blocks = [
        "\n".join([*_heading(rows), *_body(rows)])
        for _, rows in own.groupby(["encoder", "task", "constants", "metric"], sort=False)
    ]
    return "\n\n".join(blocks) if blocks else "no scores"


def _heading(rows: pd.DataFrame) -> list[str]:
    first = rows.iloc[0]
    seeds = _range(rows["n"], "probe seed")
    about = f"95 % interval and change against share 0; {seeds}; constants: {first['constants']}"
    return textwrap.wrap(
        f"{first['encoder']} on {first['task']}: {first['metric']} ({about})", WIDTH, subsequent_indent=_GAP
    )


def _range(numbers: pd.Series, noun: str) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    span = str(low) if low == high else f"{low} to {high}"
    return f"{span} {noun}" if high == 1 else f"{span} {noun}s"


def _body(rows: pd.DataFrame) -> list[str]:
    shares = sorted(set(rows["share"]))
    names = ["share", *(_percent(share) for share in shares)]
    first = [name.rjust(max(map(len, names)) + 1) for name in names]
    columns = []
    for criterion in dict.fromkeys(rows["criterion"]):
        known = {row["share"]: _cell(row) for _, row in rows[rows["criterion"] == criterion].iterrows()}
        columns.append(_column([_title(criterion), *(known.get(share, "-") for share in shares)]))
    lines = []
    for chosen in _fitting(columns, WIDTH - len(first[0])):
        lines += [_GAP.join(parts).rstrip() for parts in zip(first, *chosen, strict=True)]
    return lines


def _cell(row: pd.Series) -> str:
    if math.isnan(row["mean"]):
        return "not a number"
    half, change = (row["high"] - row["low"]) / 2, row["relative"]
    interval = "" if math.isnan(half) else f" ± {half:.3f}"
    unchanged = row["share"] == 0 or math.isnan(change)
    return f"{row['mean']:.3f}{interval}" + ("" if unchanged else f" ({100 * change:+.1f} %)")


def _title(criterion: str) -> str:
    return criterion if len(criterion) <= 40 else f"{criterion[:37]}..."


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _column(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def _fitting(columns: Sequence[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Groups of columns that are no wider than a line, each of at least one."""
    group: list[list[str]] = []
    used = 0
    for column in columns:
        needed = len(_GAP) + len(column[0])
        if group and used + needed > width:
            yield group
            group, used = [], 0
        group.append(column)
        used += needed
    if group:
        yield group
