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
    """Mean changes by encoder over all of its tasks that beat chance, at the shares that all of these have."""
    every = sorted(set(part.own.loc[part.own["criterion"] == criterion, "share"]))
    rows = list[dict[str, object]]()
    for encoder in part.encoders:
        means = {share: part.change(encoder, share, criterion) for share in (*every, 1.0)}
        most = max((len(mean.tasks) for mean in means.values() if mean), default=0)
        kept = {share: mean for share, mean in means.items() if mean and len(mean.tasks) == most}
        if len(kept) > 1:  # at 1 there is no order
            line: dict[str, object] = {"encoder": encoder, "task": title}
            rows.append(line | {"share": 0.0, "relative": 0.0, "relative_low": 0.0, "relative_high": 0.0})
            rows += [
                line | {"share": share, "relative": one.value, "relative_low": one.low, "relative_high": one.high}
                for share, one in kept.items()
            ]
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
