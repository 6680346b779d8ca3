"""Numbers, intervals and verdicts in words, which follow from the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from papa_lightning.study.intervals import Estimate
from papa_lightning.study.report.findings import interval, number, percent
from papa_lightning.study.verdicts import verdict_of
from papa_lightning.text import Table
from results_page.data import Average

#: Losses that count as none, and as small.
NONE, SMALL = 0.01, 0.03
#: What the paper says that all heads cost on average.
PAPER = 0.08
#: Columns of a table, at most.
COLUMNS = 6

#: Verdicts on a relative change, from the best to the worst, with their short forms in tables.
VERDICTS = {
    "at most 1 % lost": "≤ 1 %",
    "at most 3 % lost": "≤ 3 %",
    "1 to 3 % lost": "1-3 %",
    "not settled": "open",
    "more than 1 % lost": "> 1 %",
    "more than 3 % lost": "> 3 %",
}


def verdict(change: Estimate) -> str:
    """One of :data:`VERDICTS`; empty without an interval."""
    if math.isnan(change.low):
        return ""
    return {
        ("within", "within"): "at most 1 % lost",
        ("open", "within"): "at most 3 % lost",
        ("beyond", "within"): "1 to 3 % lost",
        ("beyond", "open"): "more than 1 % lost",
        ("beyond", "beyond"): "more than 3 % lost",
    }.get((verdict_of(change, NONE), verdict_of(change, SMALL)), "not settled")


def change(one: Average | pd.Series | None) -> str:
    """A relative change with its interval; "at chance" for a task whose score beats no constant answer."""
    if one is None:
        return ""
    found = one.estimate if isinstance(one, Average) else of_row(one)
    if math.isnan(found.value):
        return "at chance"
    ends = interval(found.low, found.high, True)
    return f"{percent(found.value)} ({ends})" if ends else percent(found.value)


def marked(one: Average | pd.Series | None) -> str:
    """A relative change with its interval and the short form of its verdict."""
    if one is None:
        return ""
    found = one.estimate if isinstance(one, Average) else of_row(one)
    words = VERDICTS.get(verdict(found), "")
    return f"{change(one)} {words}".strip()


def score(row: pd.Series | None, best: pd.Series | None = None) -> str:
    """A score with its interval, and that of the best epoch behind a stroke."""
    if row is None:
        return ""
    ends = interval(row["low"], row["high"])
    text = f"{number(row['mean'])} ({ends})" if ends else number(row["mean"])
    return text if best is None else f"{text} / {number(best['mean'])}"


def listed(names: Iterable[str], last: str = "and") -> str:
    """Names in a sentence: "a, b and c"."""
    *others, end = list(names)
    return f"{', '.join(others)} {last} {end}" if others else end


def grouped(found: Mapping[str, str], order: Iterable[str]) -> str:
    """Names by what is said of them: "at most 1 % lost: a and b; not settled: c"."""
    parts = [(said, [name for name, one in found.items() if one == said]) for said in order]
    return "; ".join(f"{said}: {listed(names)}" for said, names in parts if names)


def sign_words(one: Average | Estimate, better: str, worse: str, neither: str) -> str:
    """Which of three words the interval of a difference settles."""
    return better if one.low > 0 else worse if one.high < 0 else neither


def tables(columns: Sequence[str], rows: Sequence[Sequence[str]], fixed: int = 1) -> str:
    """Tables in Markdown of at most :data:`COLUMNS` columns; the first `fixed` ones stand in each."""
    room, rest = COLUMNS - fixed, range(fixed, len(columns))
    groups = [rest[start : start + room] for start in range(0, len(rest), room)] or [range(0)]
    parts = []
    for group in groups:
        places = [*range(fixed), *group]
        kept = [[row[place] for place in places] for row in rows]
        filled = [row for row in kept if any(row[fixed:])] if group else kept
        parts.append(Table([columns[place] for place in places], filled, left=len(places)).markdown())
    return "\n\n".join(parts)


def of_row(row: pd.Series) -> Estimate:
    """The relative change of a row."""
    value, low, high = (float(row[f"relative{end}"]) for end in ("", "_low", "_high"))
    return Estimate(value, low, high)
