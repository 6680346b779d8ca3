"""Figures of the page of results."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from papa_lightning.figures.bars import drop_against_baseline
from papa_lightning.figures.curves import relative_curves
from results_page.data import Part, Results

#: Largest width of an interval in the figure by task, as a part of the score with all heads dynamic.
WIDEST = 0.2


def shares(results: Results) -> Figure | None:
    """Mean relative change over tasks against the share of constant heads, by a criterion and in random order."""
    part = results.tasks
    titles = {part.first: f"heads by {part.first}", "random": "heads in random order"}
    rows = [row for criterion, title in titles.items() for row in _mean_curve(part, criterion, title)]
    return relative_curves(pd.DataFrame(rows)) if rows else None


def _mean_curve(part: Part, criterion: str, title: str) -> list[dict[str, object]]:
    """Mean changes at all shares, over the tasks that have all of them."""
    inner = sorted(set(part.own.loc[part.own["criterion"] == criterion, "share"]))
    rows = []
    for encoder in part.encoders:
        every = [{row["task"] for row in part.known(encoder, share, criterion)} for share in (*inner, 1.0)]
        tasks = set.intersection(*every)
        for share in (0.0, *inner, 1.0) if tasks and inner else ():
            mean = part.change(encoder, share, criterion, tasks=tasks)
            if mean is not None:
                line = {"encoder": encoder, "task": title, "share": share}
                rows.append(line | {"relative": mean.value, "relative_low": mean.low, "relative_high": mean.high})
    return rows


def tasks(results: Results) -> Figure | None:
    """Relative change against the share of constant heads, by the first criterion, a panel for each task.

    Curves with an interval wider than :data:`WIDEST` are left out: they would hide all others.
    """
    part = results.tasks
    if not part:
        return None
    rows = part.own[part.own["criterion"].isin(("", part.first)) & part.own["constants"].isin(("", "average"))]
    widths = (rows["relative_high"] - rows["relative_low"]).groupby([rows["encoder"], rows["task"]]).max()
    narrow = widths.index[widths <= WIDEST]
    rows = rows[[pair in narrow for pair in zip(rows["encoder"], rows["task"], strict=True)]]
    changed = rows[(rows["share"] > 0) & rows["relative"].notna()]
    return relative_curves(rows[rows["task"].isin(changed["task"])]) if len(changed) else None


def graded(results: Results) -> Figure | None:
    """Relative drop with all heads constant against the score, of checkpoints and tasks."""
    part = results.graded
    points = [
        {"encoder": encoder, "task": task, "baseline": base["mean"], "drop": -row["relative"]}
        for encoder in part.encoders
        for task in part.tasks
        if (base := part.row(encoder, task, 0.0)) is not None
        and (row := part.row(encoder, task, 1.0)) is not None
        and math.isfinite(row["relative"])
    ]
    return drop_against_baseline(pd.DataFrame(points)) if points else None
