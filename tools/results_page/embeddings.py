"""Blocks on embedding models, in which nothing is trained."""

from __future__ import annotations

import math

import pandas as pd

from papa_lightning.study.report.findings import interval, number
from papa_lightning.study.settings import RECOVERED
from papa_lightning.study.verdicts import counted_units, verdict_of
from results_page.data import HALF, Part, Results
from results_page.words import NONE, change, grouped, listed, of_row, score, tables

_WORDS = ("less than 1 % lost, settled", "more than 1 % lost, settled", "not settled at 1 %")


def embeddings(results: Results) -> str:
    """For each task a table of criteria by encoder and share, what half costs, and kinds of constants."""
    part = results.embeddings
    blocks = []
    for task in part.tasks:
        rows = part.own[part.own["task"] == task]
        first = rows.iloc[0]
        about = f"{first['metric']}, {counted_units(int(first['examples']), first['unit'])}"
        table = _table(part, task)
        told = "\n".join(f"- {line}" for line in _lines(part, task) if line)
        blocks += [f"### {task}: {about}", table, told, _kinds(part, task)]
    return "\n\n".join(block for block in blocks if block)


def _columns(part: Part, task: str) -> list[str]:
    """Criteria of a task, random orders last."""
    rows = part.own[(part.own["task"] == task) & (part.own["constants"] == "average")]
    found = dict.fromkeys(name for name in rows["criterion"] if name)
    return sorted(found, key=lambda name: name == "random")


def _encoders(part: Part, task: str) -> list[str]:
    known = set(part.own.loc[part.own["task"] == task, "encoder"])
    return [encoder for encoder in part.encoders if encoder in known]


def _shares(part: Part, encoder: str, task: str) -> list[float]:
    rows = part.own[(part.own["encoder"] == encoder) & (part.own["task"] == task)]
    return sorted({float(share) for share in rows["share"] if share > 0})


def _recovered(part: Part, encoder: str, task: str, share: float) -> pd.Series | None:
    return part.row(encoder, task, share, part.first, constants=RECOVERED)


def _table(part: Part, task: str) -> str:
    criteria = _columns(part, task)
    recovered = any((part.own["task"] == task) & (part.own["constants"] == RECOVERED))
    columns = ["constant heads", *(f"`{one}`" for one in criteria), *["recovered"] * recovered]
    rows = []
    for encoder in _encoders(part, task):
        base = part.row(encoder, task, 0.0)
        rows.append([f"**{encoder}**", f"{score(base)} all dynamic", *[""] * (len(columns) - 2)])
        for share in _shares(part, encoder, task):
            own = [part.row(encoder, task, share, one) for one in criteria]
            # With all heads constant there is one choice.
            cells = [_cell(row) if share < 1 or not place else "" for place, row in enumerate(own)]
            cells += [_cell(_recovered(part, encoder, task, share))] * recovered
            known = next((row for row in own if row is not None), None)
            if known is not None:
                rows.append([f"{known['constant_heads']:.0f} of {known['total_heads']:.0f}", *cells])
    return tables(columns, rows)


def _cell(row: pd.Series | None) -> str:
    """Score, and relative change with its interval."""
    if row is None:
        return ""
    return f"{number(row['mean'])}, {change(row)}"


def _lines(part: Part, task: str) -> list[str]:
    """What the numbers settle, in sentences."""
    encoders = _encoders(part, task)
    lines = []
    half = {
        f"{encoder} by `{one}` {change(row)}": _at_one_percent(row)
        for encoder in encoders
        for one in _columns(part, task)
        if (row := part.row(encoder, task, HALF, one)) is not None and math.isfinite(row["relative_low"])
    }
    if half:
        lines.append(f"**Half of the heads**: {grouped(half, _WORDS)}.")
    whole = [(encoder, row) for encoder in encoders if (row := part.row(encoder, task, 1.0)) is not None]
    if whole:
        lines.append(f"**All heads**: {listed(f'{encoder} {change(row)}' for encoder, row in whole)}.")
    trained = [
        (encoder, row, after)
        for encoder, row in whole
        if (after := _recovered(part, encoder, task, 1.0)) is not None and row["relative"] < 0
    ]
    if trained:
        back = (
            f"{encoder} {100 * (1 - after['relative'] / row['relative']):.0f} % of the loss"
            for encoder, row, after in trained
        )
        lines.append(f"**A recovery** with all heads constant brings back, of the mean: {listed(back)}.")
    return lines


def _at_one_percent(row: pd.Series) -> str:
    return dict(zip(("within", "beyond", "open"), _WORDS, strict=True))[str(verdict_of(of_row(row), NONE))]


def _kinds(part: Part, task: str) -> str:
    """Scores with other constants than the average."""
    rows = part.own[(part.own["task"] == task) & (part.own["share"] > 0)]
    kinds = [kind for kind in dict.fromkeys(rows["constants"]) if kind not in ("average", RECOVERED)]
    lines = []
    for encoder in _encoders(part, task):
        for share in (HALF, 1.0):
            own = [part.row(encoder, task, share, part.first, constants=kind) for kind in ("average", *kinds)]
            if any(row is not None for row in own[1:]):
                place = "half" if share < 1 else "all"
                lines.append((f"{encoder}, {place}", *(_score(row) for row in own)))
    columns = (f"constant, by `{part.first}`", "`average`", *(f"`{kind}`" for kind in kinds))
    return tables(columns, lines) if lines else ""


def _score(row: pd.Series | None) -> str:
    return "" if row is None else f"{number(row['mean'])} ({interval(row['low'], row['high'])})"
