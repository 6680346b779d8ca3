"""What a study of kinds measured: one file a training, and all of them as one table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from papa_lightning.checks import Check, anything, filled, mapped, number, record, text, whole
from papa_lightning.errors import ResultFileError
from papa_lightning.files.checked import read_json, write_json
from papa_lightning.study.statistics import mean_interval

_FORMAT = "papa_lightning.kind_result/2"
#: What is summarised over the seeds.
MEASURED = ("score", "loss", "steps_per_second", "peak_memory_bytes", "step_memory_bytes", "parameters")


@dataclass(frozen=True)
class KindResult:
    """One training: a cell of a study of kinds.

    Args:
        variant: Its name.
        kind: Of its attention; kinds by layer with commas between.
        seed: Of the initial weights and the order of the examples.
        metric: Name of the score.
        score: After the last step, on the validation data.
        loss: The same of the loss, in nats.
        parameters: Those that learn.
        steps: Optimizer steps.
        steps_per_second: See :class:`~papa_lightning.callbacks.Throughput`; NaN where not measured, as of the next two.
        peak_memory_bytes: See there.
        step_memory_bytes: See there.
        seconds: What all of it took.
        versions: Of the software, by name.
        hash: Of all that the score depends on.

    Raises:
        PapaError: For a value of the wrong type or out of its range.
    """

    variant: str
    kind: str
    seed: int
    metric: str
    score: float
    loss: float
    parameters: int
    steps: int
    steps_per_second: float
    peak_memory_bytes: float
    step_memory_bytes: float
    seconds: float
    versions: Mapping[str, str]
    hash: str

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            lacking = name in _MAY_LACK and isinstance(value, float) and not math.isfinite(value)
            object.__setattr__(self, name, math.nan if lacking else check(name, value))

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, whole or not at all."""
        plain = asdict(self)
        # JSON has no NaN.
        return write_json(path, _FORMAT, plain | {name: None for name in _MAY_LACK if math.isnan(plain[name])})

    @classmethod
    def load(cls, path: str | Path) -> KindResult:
        """Read what :meth:`save` wrote.

        Raises:
            ResultFileError: When the file is damaged or something else.
        """
        remedy = "delete it, and run the study again"
        found: KindResult = read_json(path, _FORMAT, _as_result, ResultFileError, "result of a kind", remedy)
        return found


_CHECKS: Mapping[str, Check] = {
    **dict.fromkeys(("variant", "kind", "metric"), filled),
    **dict.fromkeys(("seed", "parameters", "steps"), whole()),
    **dict.fromkeys(("score", "loss"), number()),
    **dict.fromkeys(("steps_per_second", "peak_memory_bytes", "step_memory_bytes", "seconds"), number(0)),
    "versions": mapped(text),
    "hash": text,
}
#: What is NaN where it was not measured, and where a training diverged.
_MAY_LACK = ("score", "loss", "steps_per_second", "peak_memory_bytes", "step_memory_bytes")


def _as_result(name: str, value: object) -> KindResult:
    content = record(dict.fromkeys(_CHECKS, anything))(name, value)
    return KindResult(**content | {key: math.nan for key in _MAY_LACK if content[key] is None})


def kinds_table(results: Iterable[KindResult]) -> pd.DataFrame:
    """All results, one row each."""
    columns = [one.name for one in fields(KindResult)]
    rows = [{**asdict(result), "versions": json.dumps(result.versions, sort_keys=True)} for result in results]
    return pd.DataFrame(rows, columns=columns)


def summarize_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds with 95 % intervals by Student's t.

    Args:
        table: Of :func:`kinds_table`.

    Returns:
        A row for each variant, in the order of the table: variant, kind, metric, n (seeds), and for everything in
        :data:`MEASURED` its mean under its name and the ends of the interval, NAME_low and NAME_high.
    """
    rows = []
    for (variant, kind, metric), found in table.groupby(["variant", "kind", "metric"], sort=False):
        row: dict[str, Any] = {"variant": variant, "kind": kind, "metric": metric, "n": len(found)}
        for name in MEASURED:
            row[name], row[f"{name}_low"], row[f"{name}_high"] = mean_interval(found[name].to_numpy(float))
        rows.append(row)
    return pd.DataFrame(rows)


def markdown_table(summary: pd.DataFrame) -> str:
    """The summary as a markdown table, with half of each interval behind the mean."""
    metric = summary["metric"].iloc[0] if len(summary) else "score"
    head = ("variant", metric, "loss (nats)", "steps/s", "peak memory (MB)", "a step (MB)", "parameters", "seeds")
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    lines += [table_cells(row) for _, row in summary.iterrows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table_cells(row: pd.Series) -> tuple[str, ...]:
    """One variant in words."""
    return (
        str(row["variant"]),
        _with_half(row, "score", 3),
        _with_half(row, "loss", 3),
        _with_half(row, "steps_per_second", 2),
        _with_half(row, "peak_memory_bytes", 0, 1e6),
        _with_half(row, "step_memory_bytes", 0, 1e6),
        f"{row['parameters']:,.0f}",
        str(row["n"]),
    )


def _with_half(row: pd.Series, name: str, digits: int, unit: float = 1.0) -> str:
    if math.isnan(row[name]):
        return "-"
    half = (row[f"{name}_high"] - row[name]) / unit
    shown = f"{row[name] / unit:.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"
