"""Results of a comparison of kinds: a file for each training, and all of them as one table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import pandas as pd

from papa_lightning.checks import filled, number
from papa_lightning.errors import ResultFileError
from papa_lightning.files.records import check_fields, or_nan, read_record, write_record
from papa_lightning.study.intervals import mean_interval
from papa_lightning.text import Table

_FORMAT = "papa_lightning.kind_result/2"
#: Quantities that are averaged over the seeds.
MEASURED = ("score", "loss", "steps_per_second", "peak_memory_bytes", "step_memory_bytes", "parameters")


Measured: TypeAlias = Annotated[float, or_nan(number(0))]
"""A quantity that is NaN where it was not measured."""


@dataclass(frozen=True)
class KindResult:
    """One training: a cell of a comparison of kinds.

    Args:
        variant: Name of the variant.
        kind: Kind of its attention; kinds by layer with commas between them.
        seed: Seed of the initial weights and of the order of the examples.
        metric: Name of the score.
        score: Score on the validation data after the last step; NaN where the training diverged.
        loss: Loss on the validation data after the last step, in nats; NaN where the training diverged.
        parameters: Number of trained parameters.
        steps: Number of optimizer steps.
        steps_per_second: See :class:`~papa_lightning.callbacks.Throughput`; NaN where it was not measured.
        peak_memory_bytes: See there.
        step_memory_bytes: See there.
        seconds: Seconds for the whole training.
        versions: Versions of the software, by name.
        hash: Hash of everything that the score depends on.

    Raises:
        PapaError: For a value of the wrong type or out of its range.
    """

    variant: Annotated[str, filled]
    kind: Annotated[str, filled]
    seed: int
    metric: Annotated[str, filled]
    score: Annotated[float, or_nan(number())]
    loss: Annotated[float, or_nan(number())]
    parameters: int
    steps: int
    steps_per_second: Measured
    peak_memory_bytes: Measured
    step_memory_bytes: Measured
    seconds: Annotated[float, number(0)]
    versions: Mapping[str, str]
    hash: str

    def __post_init__(self) -> None:
        check_fields(self)

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, whole or not at all."""
        return write_record(path, _FORMAT, self)

    @classmethod
    def load(cls, path: str | Path) -> KindResult:
        """Read what :meth:`save` wrote; raises a ResultFileError for anything else."""
        remedy = "delete it, and run the study again"
        return read_record(path, _FORMAT, cls, ResultFileError, "result of a kind", remedy)


def kinds_table(results: Iterable[KindResult]) -> pd.DataFrame:
    """All results as a table, one row each; versions stand in each result's file."""
    columns = [one.name for one in fields(KindResult) if one.name != "versions"]
    return pd.DataFrame([asdict(result) for result in results], columns=columns)


def summarize_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds with 95 % intervals by Student's t.

    Args:
        table: Result of :func:`kinds_table`.

    Returns:
        A row for each variant, in the order of the table: variant, kind, metric, n (seeds), and for each quantity of
        :data:`MEASURED` its mean under its name and the ends of the interval as NAME_low and NAME_high.
    """
    rows = []
    for (variant, kind, metric), found in table.groupby(["variant", "kind", "metric"], sort=False):
        row: dict[str, Any] = {"variant": variant, "kind": kind, "metric": metric, "n": len(found)}
        for name in MEASURED:
            row[name], row[f"{name}_low"], row[f"{name}_high"] = mean_interval(found[name].to_numpy(float))
        rows.append(row)
    return pd.DataFrame(rows)


def kinds_overview(summary: pd.DataFrame) -> Table:
    """The summary as a table, with half of each interval behind the mean."""
    metric = str(summary["metric"].iloc[0]).replace("_", " ") if len(summary) else "score"
    shown: dict[str, tuple[str, int, float]] = {
        metric: ("score", 3, 1.0),
        "loss (nats)": ("loss", 3, 1.0),
        "steps/s": ("steps_per_second", 2, 1.0),
        "peak memory (MB)": ("peak_memory_bytes", 0, 1e6),
        "a step (MB)": ("step_memory_bytes", 0, 1e6),
    }
    rows = [
        (row["variant"], *(_with_half(row, *one) for one in shown.values()), f"{row['parameters']:,.0f}", f"{row['n']}")
        for _, row in summary.iterrows()
    ]
    return Table(("variant", *shown, "parameters", "seeds"), rows)


def _with_half(row: pd.Series, name: str, digits: int, unit: float) -> str:
    if math.isnan(row[name]):
        return "-"
    half = (row[f"{name}_high"] - row[name]) / unit
    shown = f"{row[name] / unit:.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"
