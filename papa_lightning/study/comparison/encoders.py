"""Encoders of a study beside each other in one table."""

from __future__ import annotations

import math

import pandas as pd

from papa_lightning.study.intervals import Estimate, estimate
from papa_lightning.study.predictions import same_examples
from papa_lightning.study.resampling import Probes
from papa_lightning.study.statistics import Evidence
from papa_lightning.text import Table

_NAMES = ["task", "metric", "criterion", "share"]
_VALUES = ("score", "low", "high", "change")
_DIFFERENCE = ("difference", "difference_low", "difference_high")


def compare_encoders(evidence: Evidence) -> pd.DataFrame:
    """The tasks' own scores with averaged attention, columns for each encoder.

    Args:
        evidence: Results of a study.

    Returns:
        A DataFrame of plain numbers. Its index is (task, metric, criterion, share); its columns are, for each encoder,
        "score", "low" and "high", the mean over the seeds and its 95 % interval, and "change", the relative change
        against share 0. Encoders behind the first also have "difference", "difference_low" and "difference_high": the
        score minus that of the first encoder, paired over examples and seeds; NaN where the examples differ, as
        tokenizers may cut words of a token task in different places.
    """
    summary = evidence.summary
    own = summary[summary["is_score"].astype(bool) & (summary["constants"] == "average")]
    encoders = list(dict.fromkeys(own["encoder"]))
    index = pd.MultiIndex.from_frame(own[_NAMES].drop_duplicates())
    columns: dict[tuple[str, str], pd.Series] = {}
    for encoder in encoders:
        rows = own[own["encoder"] == encoder].set_index(_NAMES).rename(columns={"mean": "score", "relative": "change"})
        columns |= {(encoder, value): rows[value].reindex(index) for value in _VALUES}
        if encoder != encoders[0]:
            columns |= {(encoder, name): found for name, found in _differences(evidence, encoders[0], encoder, index)}
    return pd.DataFrame(columns, index=index)


def _differences(evidence: Evidence, first: str, second: str, index: pd.MultiIndex) -> list[tuple[str, pd.Series]]:
    """The second encoder's score minus that of the first, and its interval, for each row of the index."""
    found = list[tuple[float, float, float]]()
    for task in dict.fromkeys(index.get_level_values("task")):
        paired = _Paired(evidence, task, first, second)
        for _, metric, criterion, share in index[index.get_level_values("task") == task]:
            one = paired.at(metric, criterion, share)
            found.append((one.value, one.low, one.high))
    return [
        (name, pd.Series(values, index)) for name, values in zip(_DIFFERENCE, zip(*found, strict=True), strict=True)
    ]


class _Paired:
    """Two encoders on a task, compared example by example."""

    def __init__(self, evidence: Evidence, task: str, first: str, second: str) -> None:
        table = evidence.table[evidence.table["task"] == task]
        self._rows = [table[table["encoder"] == name] for name in (second, first)]
        self._probes = [Probes(rows, evidence.predictions) for rows in self._rows]
        hashes = [rows["hash"].iloc[0] if len(rows) else "" for rows in self._rows]
        sets = [evidence.predictions(key) for key in hashes] if all(hashes) else []
        kept = [one[""] for one in sets if one is not None]
        self._same = bool(sets) and (len(kept) < 2 or same_examples(*kept))

    def at(self, metric: str, criterion: str, share: float) -> Estimate:
        """The difference at a share of constant heads, over the seeds that both have."""
        sides = [
            rows[
                (rows["metric"] == metric)
                & (rows["criterion"] == criterion)
                & (rows["share"] == share)
                & (rows["constants"] == "average")
            ]
            for rows in self._rows
        ]
        seeds = set(sides[0]["seed"]) & set(sides[1]["seed"])
        if not seeds or not self._same:
            return Estimate(math.nan)
        one, other = (
            probes.sample(rows[rows["seed"].isin(seeds)]) for probes, rows in zip(self._probes, sides, strict=True)
        )
        return estimate(one.minus(other))


def encoder_tables(evidence: Evidence) -> list[Table]:
    """The comparison for the terminal, a table for each task that several encoders have; none for one encoder."""
    if evidence.table["encoder"].nunique() < 2:
        return []
    compared, tables = compare_encoders(evidence), []
    for (task, metric), rows in compared.groupby(level=["task", "metric"], sort=False):
        names = dict.fromkeys(rows.columns.get_level_values(0))
        encoders = [name for name in names if rows[name]["score"].notna().any()]
        if len(encoders) < 2:
            continue
        cells = [
            (criterion, f"{100 * share:.4g} %", *(_cell(row[name]) for name in encoders))
            for (_, _, criterion, share), row in rows.iterrows()
        ]
        title = f"encoders on {task}: {metric} (in brackets the difference to {encoders[0]}, with its 95 % interval)"
        tables.append(Table(("criterion", "share", *encoders), cells, left=2, title=title))
    return tables


def _cell(values: pd.Series) -> str:
    if pd.isna(values["score"]):
        return "-"
    change, low, high = (values.get(name, math.nan) for name in _DIFFERENCE)
    if pd.isna(change):
        return f"{values['score']:.3f}"
    interval = "" if pd.isna(low) else f", {low:+.3f} to {high:+.3f}"
    return f"{values['score']:.3f} ({change:+.3f}{interval})"
