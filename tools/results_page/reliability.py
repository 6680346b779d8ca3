"""Block on how far averages of attention over different rows are apart."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from papa_lightning.study.report.findings import number
from papa_lightning.text import counted
from results_page.data import Results
from results_page.words import grouped, listed, tables

#: Numbers of rows with a column of their own, where they were measured.
_SHOWN = (16, 256)
#: A distance that counts as small.
_CLOSE = 0.05
#: Lowest rank correlation, and part of the lowest half in common, of rankings that agree.
_AGREE = (0.95, 0.9)


def reliability(results: Results) -> str:
    """Distances of averages by encoder and task, and what follows from them."""
    found = results.reliability
    if found is None or not len(found):
        return ""
    pairs = list(dict.fromkeys(zip(found["encoder"], found["task"], strict=True)))
    sizes = [size for size in _SHOWN if len(_of(found, "sequences", beside=str(size)))]
    columns = ("encoder, task", "two halves", *(f"{size} rows" for size in sizes), "other tasks", "rankings")
    lines = [_halves(found, pairs), _rankings(found), _enough(found, pairs)]
    told = "\n".join(f"- {line}" for line in lines if line)
    return f"{told}\n\n{tables(columns, [_row(found, *pair, sizes) for pair in pairs])}"


def _of(found: pd.DataFrame, kind: str, *pair: str, beside: str | None = None) -> pd.DataFrame:
    """The comparisons of a kind, of an encoder and task, and with a number of rows; all where these are not given."""
    rows = found[found["kind"] == kind]
    for column, name in zip(("encoder", "task"), pair, strict=False):
        rows = rows[rows[column] == name]
    return rows if beside is None else rows[rows["with"] == beside]


def _row(found: pd.DataFrame, encoder: str, task: str, sizes: Iterable[int]) -> tuple[str, ...]:
    halves = _of(found, "half", encoder, task)
    about = f"{encoder}, {task}"
    if len(halves):
        about += f": {int(halves['rows'].iloc[0]):,} rows, {counted(halves['seed'].nunique(), 'order')}"
    numbers = (_distance(_of(found, "sequences", encoder, task, beside=str(size))) for size in sizes)
    others = ", ".join(f"{name} {_distance(rows)}" for name, rows in _others(found, encoder, task).groupby("with"))
    return about, _distance(halves), *numbers, others, _least(halves) if len(halves) else ""


def _others(found: pd.DataFrame, encoder: str, task: str) -> pd.DataFrame:
    """The comparisons of a task with others, which stand in the column `with`."""
    rows = _of(found, "task", encoder)
    back = rows[rows["with"] == task]
    return pd.concat([rows[rows["task"] == task], back.assign(**{"task": back["with"], "with": back["task"]})])


def _distance(rows: pd.DataFrame) -> str:
    """Mean distance and the largest of a head."""
    return f"{number(rows['distance_mean'].mean())} ({number(rows['distance_max'].max())})" if len(rows) else ""


def _halves(found: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> str:
    """Whether tasks are further apart than halves of their rows."""
    halves, tasks = _of(found, "half")["distance_mean"], _of(found, "task")["distance_mean"]
    if not len(halves):
        return ""
    said = f"The averages of two halves of the rows are at most {number(halves.max())} apart"
    if not len(tasks):
        return f"{said}."
    nearest = {pair: _others(found, *pair)["distance_mean"].min() for pair in pairs}
    chance = [pair for pair, one in nearest.items() if one <= _of(found, "half", *pair)["distance_mean"].max()]
    answer = f"Not for {listed(' on '.join(pair) for pair in chance)}" if chance else "Yes"
    said = f"{answer}. {said}, those of two tasks at least {number(tasks.min())}."
    return f"**Do averages differ by task, beyond chance?** {said}"


def _rankings(found: pd.DataFrame) -> str:
    """Whether rankings by variance depend on the half of the rows."""
    halves = _of(found, "half")
    if not len(halves):
        return ""
    tasks = _of(found, "task")
    answer = f"On the half of a task's rows {_depend(halves)}"
    beside = ""
    if len(tasks):
        answer += f", on the task {_depend(tasks)}"
        beside = f"; of two tasks, {_least(tasks)}"
    return (
        f"**Do rankings by variance depend on the rows?** {answer}. Lowest rank correlation, and part of the lowest "
        f"half of the heads that is in both: of two halves of the rows, {_least(halves)}{beside}."
    )


def _depend(rows: pd.DataFrame) -> str:
    """Whether rankings depend on what is compared: "hardly" where all of them agree."""
    lowest = rows["rank_correlation"].min(), rows["lowest_half_overlap"].min()
    return "hardly" if all(value >= least for value, least in zip(lowest, _AGREE, strict=True)) else "yes"


def _least(rows: pd.DataFrame) -> str:
    """Lowest rank correlation, and lowest part of the lowest half of the heads in common."""
    return f"{number(rows['rank_correlation'].min())} and {100 * rows['lowest_half_overlap'].min():.0f} %"


def _enough(found: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> str:
    """From how many rows on an average is close to that of all others, in every random order."""
    said = {}
    for encoder, task in pairs:
        rows = _of(found, "sequences", encoder, task)
        farthest = rows["distance_mean"].groupby(rows["with"].astype(int)).max().sort_index()
        close = [size for size in farthest.index if (farthest.loc[size:] <= _CLOSE).all()]
        if len(farthest):
            most = f"more than {farthest.index.max():,} rows"
            said[f"{encoder} on {task}"] = f"{close[0]:,} rows" if close else most
    if not said:
        return ""
    sizes = sorted(_of(found, "sequences")["with"].astype(int).unique())
    return (
        f"**How many rows are enough?** At most {100 * _CLOSE:.0f} % of the attention falls on other tokens, on "
        f"average over heads and in every order, from (of {listed(f'{size:,}' for size in sizes)} measured) "
        f"{grouped(said, dict.fromkeys(said.values()))}."
    )
