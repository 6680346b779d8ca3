"""Results of a study: a file for each cell (one probe), and all of them as one table."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from papa_lightning.checks import filled, mapped, number, refuse, whole
from papa_lightning.errors import PapaError, ResultFileError
from papa_lightning.files.checked import SUM
from papa_lightning.files.records import check_fields, or_nan, read_record, write_record
from papa_lightning.files.writing import write_atomically

_FORMAT = "papa_lightning.cell_result/1"
_PARQUET, _CSV, _SUMMARY = "results.parquet", "results.csv", "summary.csv"

#: The columns of :func:`results_table` and their dtypes.
COLUMNS: Mapping[str, str] = {
    "encoder": "str",
    "task": "str",
    "criterion": "str",
    "ranking_seed": "Int64",
    "share": "float64",
    "constant_heads": "int64",
    "total_heads": "int64",
    "seed": "int64",
    "constants": "str",
    "metric": "str",
    "is_score": "bool",
    "score": "float64",
    "relative_change": "float64",
    "seconds": "float64",
    "hash": "str",
}
#: Columns that may have missing values.
_MAY_LACK = ("ranking_seed", "score", "relative_change")
#: Columns that identify a row of the table.
_NAMES = ("encoder", "task", "criterion", "ranking_seed", "share", "seed", "constants", "metric")


def _scores(name: str, value: object) -> dict[str, float]:
    """A score for each of at least one metric; NaN where it is not finite."""
    scores = mapped(or_nan(number()))(name, value)
    return {filled(f"a metric of {name}", metric): score for metric, score in scores.items()} or refuse(
        name, value, "a map from metrics to numbers"
    )


@dataclass(frozen=True)
class CellResult:
    """The scores of one probe: a cell of the grid that a study is.

    Args:
        encoder: Name of the encoder.
        task: Name of the task.
        criterion: Criterion of the ranking, e.g. "variance" or "random:3".
        share: Share of constant heads, 0 to 1.
        constant_heads: Number of constant heads.
        total_heads: Number of heads of the encoder.
        seed: Seed of the probe.
        constants: Kind of the constants, see :func:`~papa_lightning.calibration.constants_kind`.
        metric: Name of the task's own score; one of ``scores``.
        scores: Scores by metric. A score that is not finite, as the loss of a probe that diverged, is NaN.
        seconds: Seconds for the cell.
        versions: Versions of the software, by name.
        hash: Hash of everything that the scores depend on.
        level_weights: Mean absolute position weight of the probe by level, for a probe that has such weights.

    Raises:
        PapaError: For a value of the wrong type or out of its range.

    Example:
        >>> scores = {"mcc": 0.5, "loss": 0.4}
        >>> cell = CellResult("bert", "cola", "variance", 0.5, 72, 144, 0, "average", "mcc", scores, 3.0, {}, "1f")
        >>> cell.scores[cell.metric]
        0.5
    """

    encoder: Annotated[str, filled]
    task: Annotated[str, filled]
    criterion: Annotated[str, filled]
    share: Annotated[float, number(0, 1)]
    constant_heads: int
    total_heads: Annotated[int, whole(1)]
    seed: int
    constants: Annotated[str, filled]
    metric: Annotated[str, filled]
    scores: Annotated[Mapping[str, float], _scores]
    seconds: Annotated[float, number(0)]
    versions: Mapping[str, str]
    hash: str
    level_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.metric not in self.scores:
            refuse("metric", self.metric, f"one of scores, which has {', '.join(map(repr, self.scores))}")
        ends = {0.0: 0, 1.0: self.total_heads}
        expected = ends.get(self.share, self.constant_heads)
        if self.constant_heads != expected or self.constant_heads > self.total_heads:
            refuse("constant_heads", self.constant_heads, f"the share {self.share} of {self.total_heads} heads")

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, whole or not at all; the folder is made when missing."""
        return write_record(path, _FORMAT, self)

    @classmethod
    def load(cls, path: str | Path) -> CellResult:
        """Read what :meth:`save` wrote; raises a ResultFileError for anything else."""
        return read_record(path, _FORMAT, cls, ResultFileError, "result file", "delete it and run again")


def results_table(cells: Iterable[CellResult]) -> pd.DataFrame:
    """All results as one tidy table: a row for each cell and metric.

        relative_change = (score - score0) / |score0|

    where score0 is the same metric of the same encoder, task and probe seed at share 0. It is negative where the score
    fell, also for a score0 below 0, NaN where score0 is 0 or missing, and means little for a score0 near 0.

    Args:
        cells: The results, in the order of the rows; the task's own score comes first in each.

    Returns:
        Columns :data:`COLUMNS`: those of :class:`CellResult`, and

        - ranking_seed: for the criterion "random:3" 3, and the criterion is "random"; missing for other criteria;
        - metric, score: one of ``scores``;
        - is_score: whether the metric is the task's own;
        - relative_change: see above.

    Raises:
        PapaError: When two cells differ in nothing but their results: each seed must count once.

    Example:
        >>> def cell(share: float, score: float) -> CellResult:
        ...     scores, heads = {"f1": score}, int(4 * share)
        ...     return CellResult("e", "t", "random:3", share, heads, 4, 0, "average", "f1", scores, 1.0, {}, "1f")
        >>> table = results_table([cell(0.0, 0.8), cell(0.5, 0.6)])
        >>> table[["criterion", "ranking_seed", "score", "relative_change"]]
          criterion  ranking_seed  score  relative_change
        0    random             3    0.8             0.00
        1    random             3    0.6            -0.25
    """
    rows = [row for cell in cells for row in _rows(cell)]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict(COLUMNS))
    twice = table[table.duplicated(list(_NAMES))]
    if len(twice):
        found = ", ".join(f"{name} {twice.iloc[0][name]!r}" for name in _NAMES)
        raise PapaError(f"cells has a result twice ({found}): pass each cell once.")
    baseline = baseline_scores(table)
    table["relative_change"] = (table["score"] - baseline) / baseline.abs().where(baseline != 0)
    return table


def baseline_scores(table: pd.DataFrame) -> pd.Series:
    """The score (rows,) at share 0 of the same encoder, task, seed and metric for each row; NaN where missing."""
    keys = ["encoder", "task", "seed", "metric"]
    scores = table[table["share"] == 0].drop_duplicates(keys).set_index(keys)["score"].rename("baseline")
    return table[keys].join(scores, on=keys)["baseline"]


def save_table(table: pd.DataFrame, folder: str | Path) -> None:
    """Write a table as results.parquet, and for other programs as results.csv; each whole or not at all."""
    content, text = BytesIO(), _csv(table)
    found = pyarrow.Table.from_pandas(table, preserve_index=False)
    noted = {**(found.schema.metadata or {}), SUM: hashlib.sha256(text).hexdigest()}
    pyarrow.parquet.write_table(found.replace_schema_metadata(noted), content, write_page_checksum=True)
    write_atomically(Path(folder) / _PARQUET, content.getvalue())
    write_atomically(Path(folder) / _CSV, text)


def save_summary(summary: pd.DataFrame, folder: str | Path) -> None:
    """Write a summary as summary.csv, whole or not at all."""
    write_atomically(Path(folder) / _SUMMARY, _csv(summary))


def load_table(folder: str | Path) -> pd.DataFrame:
    """Read the table that :func:`save_table` wrote.

    Args:
        folder: Folder of the study.

    Raises:
        ResultFileError: When the table is missing, damaged, or something else.
    """
    path = Path(folder).expanduser() / _PARQUET
    try:
        content = BytesIO(path.read_bytes())  # pyarrow reads all files of a folder of this name
        found = pyarrow.parquet.read_table(content, page_checksum_verification=True)
        table: pd.DataFrame = found.to_pandas()
    except Exception as error:  # pyarrow does not document the errors of damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ResultFileError(f"table {str(path)!r} cannot be read ({reason}): run the study again.") from error
    if list(table.columns) != list(COLUMNS):
        raise ResultFileError(
            f"table {str(path)!r} has the columns {', '.join(map(str, table.columns))}, but a table of results has "
            f"{', '.join(COLUMNS)}: run the study again."
        )
    try:
        missing = table.drop(columns=list(_MAY_LACK)).isna().any()
        if missing.any():
            raise ValueError(f"column {missing.idxmax()} lacks values")
        table, noted = table.astype(dict(COLUMNS)), dict(found.schema.metadata or {})
        given = noted.pop(SUM.encode(), None)
        if noted.keys() - {b"pandas"} or given not in (None, hashlib.sha256(_csv(table)).hexdigest().encode()):
            raise ValueError(f"its {SUM} is not that of its content")
        return table
    except (TypeError, ValueError) as error:
        raise ResultFileError(f"table {str(path)!r} has wrong values ({error}): run the study again.") from error


def _csv(table: pd.DataFrame) -> bytes:
    return str(table.to_csv(index=False, lineterminator="\n")).encode()


def _rows(cell: CellResult) -> list[dict[str, Any]]:
    same = {name: value for name, value in vars(cell).items() if name in COLUMNS}
    random = re.fullmatch(r"random(?::([0-9]{1,18}))?", cell.criterion)
    criterion, ranking_seed = ("random", int(random[1] or 0)) if random else (cell.criterion, None)
    same |= {"criterion": criterion, "ranking_seed": ranking_seed}
    same |= {"relative_change": math.nan}
    return [
        same | {"metric": metric, "is_score": metric == cell.metric, "score": score}
        for metric, score in sorted(cell.scores.items(), key=lambda one: one[0] != cell.metric)
    ]
