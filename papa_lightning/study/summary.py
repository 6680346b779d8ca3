"""The summary of a study for the terminal."""

import math
import textwrap
from collections.abc import Iterator, Sequence

import pandas as pd

from papa_lightning.study.verdicts import counted_units, verdict_words
from papa_lightning.text import Blocks, Table, counted

#: Widest line of :func:`format_summary`, in characters.
WIDTH = 100
_GAP = 2


def format_summary(summary: pd.DataFrame, notes: Sequence[str] = ()) -> Blocks:
    """The tasks' own scores in lines and tables, for each encoder, task and kind of constants.

    Scores and changes have their 95 % intervals in brackets. Changes are relative to the score at share 0, or in units
    of the metric where that does not beat chance. The last column is the verdict on the margin.

    Args:
        summary: Result of :func:`~papa_lightning.study.statistics.summarize`.
        notes: Sentences below, as those of :class:`~papa_lightning.study.statistics.Evidence`.

    Example:
        >>> from papa_lightning.study.results import CellResult, results_table
        >>> from papa_lightning.study.statistics import summarize
        >>> def cell(share: float, seed: int, score: float) -> CellResult:
        ...     scores, heads = {"f1": score}, int(4 * share)
        ...     return CellResult("bert", "sst2", "taylor", share, heads, 4, seed, "average", "f1", scores, 1.0, {}, "")
        >>> cells = [cell(0, 0, 0.80), cell(0, 1, 0.82), cell(1, 0, 0.78), cell(1, 1, 0.79)]
        >>> print(format_summary(summarize(results_table(cells))))
        bert on sst2: f1; 2 probe seeds; constants: average; no intervals
        <BLANKLINE>
        share  heads     score  change  at most 3 % lost?
        0 %    -         0.810
        100 %  4 of 4    0.785  -3.1 %
    """
    own = summary[summary["is_score"].astype(bool)]
    groups = own.groupby(["encoder", "task", "constants", "metric"], sort=False)
    parts = [part for _, rows in groups for part in _parts(rows)]
    return Blocks([*(parts or ["no scores"]), *(textwrap.fill(note, WIDTH) for note in notes)])


def _parts(rows: pd.DataFrame) -> Iterator[Table | str]:
    """The lines and the table of one encoder, task and kind of constants."""
    first = rows.iloc[0]
    yield textwrap.fill(f"{first['encoder']} on {first['task']}: {_about(rows)}", WIDTH, subsequent_indent="  ")
    if line := _baseline(rows):
        yield textwrap.fill(line, WIDTH, subsequent_indent="  ")
    shown = _distinct(rows.sort_values("share", kind="stable"))
    lines = [(*_place(row), *_cells(row)) for _, row in shown.iterrows()]
    columns = ("share", "heads", "by", "score", "change", f"at most {100 * first['margin']:.4g} % lost?")
    kept = [place for place in range(len(columns)) if columns[place] != "by" or any(line[place] for line in lines)]
    yield Table([columns[place] for place in kept], [[line[place] for place in kept] for line in lines], len(kept))
    if line := _as_random(shown):
        yield textwrap.fill(line, WIDTH, subsequent_indent="  ")


def _about(rows: pd.DataFrame) -> str:
    """Metric, sizes, kind of constants, and what the intervals cover."""
    first, seeds = rows.iloc[0], rows["n"]
    span = counted(int(seeds.max()), "probe seed")
    parts = [str(first["metric"])]
    if first["examples"]:
        parts.append(counted_units(int(first["examples"]), first["unit"]))
    if first["unit"] == "examples":  # of a probe
        parts.append(span if seeds.min() == seeds.max() else f"{seeds.min()} to {span}")
    basis = [one for one in dict.fromkeys(rows["basis"]) if one != "none"]
    parts += [f"constants: {first['constants']}"]
    return "; ".join([*parts, f"95 % intervals over {' or '.join(basis)}" if basis else "no intervals"])


def _baseline(rows: pd.DataFrame) -> str:
    """The score with all heads dynamic beside that of a constant answer; empty where one is not known."""
    dynamic = rows[rows["share"] == 0]
    if not len(dynamic) or math.isnan(dynamic.iloc[0]["above_chance"]):
        return ""
    row = dynamic.iloc[0]
    line = f"all heads dynamic: {_score(row)}; chance {row['chance']:.3f}, difference {_change(row, 'above_chance')}"
    low = row["above_chance_low"]
    return line + (": no better than chance, so changes are not relative" if low <= 0 else "")


def _distinct(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without those in which only the criterion differs: it does not matter with no head or with all."""
    edge = rows["share"].isin((0.0, 1.0))
    return rows[~(edge & rows.duplicated(["share"]))]


def _place(row: pd.Series) -> tuple[str, str, str]:
    """Share, number of heads and criterion."""
    share, by = float(row["share"]), str(row["criterion"])
    by = f"{by} ({row['rankings']} orders)" if row["rankings"] > 1 else by
    heads = f"{row['constant_heads']} of {row['total_heads']}" if share else "-"
    return f"{100 * share:.4g} %", heads, textwrap.shorten(by, 18, placeholder="...") if 0 < share < 1 else ""


def _cells(row: pd.Series) -> tuple[str, str, str]:
    """Score, change and verdict."""
    if math.isnan(row["mean"]):
        return "not a number", "", ""
    if row["share"] == 0:
        return _score(row), "", ""
    needed = row["examples_needed"]
    answer = {"within": "yes", "beyond": "no", "no baseline": ""}.get(row["verdict"])
    change = _change(row, "difference" if math.isnan(row["relative"]) else "relative")
    words = verdict_words(row["verdict"], row["margin"], needed, row["unit"])
    return _score(row), change, words if answer is None else answer


def _score(row: pd.Series) -> str:
    ends = "" if math.isnan(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['mean']:.3f}{ends}"


def _change(row: pd.Series, name: str) -> str:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return ""
    if name == "relative":
        return f"{_signed(100 * value, 1)} %" + (
            "" if math.isnan(low) else f" [{_signed(100 * low, 1)}, {_signed(100 * high, 1)}]"
        )
    return _signed(value, 3) + ("" if math.isnan(low) else f" [{_signed(low, 3)}, {_signed(high, 3)}]")


def _signed(value: float, digits: int) -> str:
    """A number with its sign, and 0 without one."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def _as_random(rows: pd.DataFrame) -> str:
    """The criteria whose difference to random orders may be none."""
    open_rows = rows[(rows["against_random_low"] <= 0) & (rows["against_random_high"] >= 0)]
    listed = [f"{row['criterion']} at {100 * row['share']:.4g} %" for _, row in open_rows.iterrows()]
    return f"not told from random orders of the heads: {', '.join(listed)}" if listed else ""
