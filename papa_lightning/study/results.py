"""What a study measured: one file a cell (one probe), and all of them as one table."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from papa_lightning.checks import (
    Check,
    anything,
    as_float,
    filled,
    listed,
    mapped,
    maybe,
    number,
    record,
    refuse,
    text,
    whole,
)
from papa_lightning.errors import PapaError, ResultFileError
from papa_lightning.files.checked import SUM, read_json, write_json
from papa_lightning.files.writing import write_atomically

_FORMAT = "papa_lightning.cell_result/1"
_PARQUET, _CSV = "results.parquet", "results.csv"

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
    "versions": "str",
    "hash": "str",
}
#: The columns that may have missing values.
_MAY_LACK = ("ranking_seed", "score", "relative_change")
#: What names one row of the table.
_NAMES = ("encoder", "task", "criterion", "ranking_seed", "share", "seed", "constants", "metric")


@dataclass(frozen=True)
class CellResult:
    """The scores of one probe: a cell of the grid that a study is.

    Args:
        encoder: Name of the encoder.
        task: Name of the task.
        criterion: Of the ranking, e.g. "variance" or "random:3".
        share: Of constant heads, 0 to 1.
        constant_heads: Their number.
        total_heads: Number of heads of the encoder.
        seed: Of the probe.
        constants: Their kind, see :func:`~papa_lightning.calibration.constants_kind`.
        metric: Name of the task's own score; one of ``scores``.
        scores: By metric. A score that is not finite, as the loss of a probe that diverged, is kept as NaN.
        seconds: What the cell took.
        versions: Of the software, by name.
        hash: Of all that the scores depend on.
        level_weights: Mean absolute position weight of the probe by level, for a probe that has them.

    Raises:
        PapaError: For a value of the wrong type or out of its range.

    Example:
        >>> scores = {"mcc": 0.5, "loss": 0.4}
        >>> cell = CellResult("bert", "cola", "variance", 0.5, 72, 144, 0, "average", "mcc", scores, 3.0, {}, "1f")
        >>> cell.scores[cell.metric]
        0.5
    """

    encoder: str
    task: str
    criterion: str
    share: float
    constant_heads: int
    total_heads: int
    seed: int
    constants: str
    metric: str
    scores: Mapping[str, float]
    seconds: float
    versions: Mapping[str, str]
    hash: str
    level_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.metric not in self.scores:
            refuse("metric", self.metric, f"one of scores, which has {', '.join(map(repr, self.scores))}")
        ends = {0.0: 0, 1.0: self.total_heads}
        expected = ends.get(self.share, self.constant_heads)
        if self.constant_heads != expected or self.constant_heads > self.total_heads:
            refuse("constant_heads", self.constant_heads, f"the share {self.share} of {self.total_heads} heads")

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, whole or not at all.

        Args:
            path: The file; its folder is made when missing.

        Returns:
            The path.
        """
        # JSON has no NaN.
        scores = {name: None if math.isnan(score) else score for name, score in self.scores.items()}
        return write_json(path, _FORMAT, asdict(self) | {"scores": scores})

    @classmethod
    def load(cls, path: str | Path) -> CellResult:
        """Read a result that :meth:`save` wrote.

        Raises:
            ResultFileError: When the file is missing, damaged, or something else.
        """
        remedy = "delete it and run again"
        found: CellResult = read_json(path, _FORMAT, _as_result, ResultFileError, "result file", remedy)
        return found


def _as_result(name: str, value: object) -> CellResult:
    content = record(dict.fromkeys((one.name for one in fields(CellResult)), anything))(name, value)
    scores = mapped(maybe(number()))("scores", content["scores"])
    return CellResult(**content | {"scores": {key: math.nan if one is None else one for key, one in scores.items()}})


def results_table(cells: Iterable[CellResult]) -> pd.DataFrame:
    """All results as one tidy table: a row a cell and metric.

        relative_change = (score - score0) / |score0|

    where score0 is the same metric of the same encoder, task and probe seed at share 0, whatever its criterion and
    kind of constants, which do not matter there. It is negative where the score fell, also for a score0 below 0, and
    NaN where score0 is 0 or missing. A Matthews correlation near 0 makes it large without meaning much: look at the
    differences of scores then.

    Args:
        cells: The results, in the order of the rows; of each one the task's own score comes first.

    Returns:
        Columns :data:`COLUMNS`: those of :class:`CellResult`, with versions as JSON, and

        - ranking_seed: for the criterion "random:3" 3, and the criterion is "random"; missing for other criteria;
        - metric, score: one of ``scores``;
        - is_score: whether it is the task's own;
        - relative_change: see above.

    Raises:
        PapaError: When two cells are the same but for their results: each seed must count once.

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
    """For each row of a table the same metric of the same encoder, task and probe seed at share 0.

    Args:
        table: As :func:`results_table` makes it.

    Returns:
        (rows,); NaN where share 0 is missing.
    """
    keys = ["encoder", "task", "seed", "metric"]
    scores = table[table["share"] == 0].drop_duplicates(keys).set_index(keys)["score"].rename("baseline")
    return table[keys].join(scores, on=keys)["baseline"]


def save_table(table: pd.DataFrame, folder: str | Path) -> None:
    """Write a table as results.parquet, and for other programs as results.csv; each whole or not at all.

    Args:
        table: What :func:`results_table` made.
        folder: Is made when missing.
    """
    content, text = BytesIO(), _csv(table)
    found = pyarrow.Table.from_pandas(table, preserve_index=False)
    noted = {**(found.schema.metadata or {}), SUM: hashlib.sha256(text).hexdigest()}
    pyarrow.parquet.write_table(found.replace_schema_metadata(noted), content, write_page_checksum=True)
    write_atomically(Path(folder) / _PARQUET, content.getvalue())
    write_atomically(Path(folder) / _CSV, text)


def load_table(folder: str | Path) -> pd.DataFrame:
    """Read the table that :func:`save_table` wrote.

    Args:
        folder: Of the study.

    Raises:
        ResultFileError: When there is none, or it is damaged or something else.
    """
    path = Path(folder).expanduser() / _PARQUET
    try:
        content = BytesIO(path.read_bytes())  # from a folder of this name all files would be read
        found = pyarrow.parquet.read_table(content, page_checksum_verification=True)
        table: pd.DataFrame = found.to_pandas()
    except Exception as error:  # which ones a damaged file raises, pyarrow does not say
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
    criterion, ranking_seed = _split_criterion(cell.criterion)
    same |= {"criterion": criterion, "ranking_seed": ranking_seed}
    same |= {"versions": json.dumps(dict(cell.versions), sort_keys=True), "relative_change": math.nan}
    return [
        same | {"metric": metric, "is_score": metric == cell.metric, "score": score}
        for metric, score in sorted(cell.scores.items(), key=lambda one: one[0] != cell.metric)
    ]


def _split_criterion(criterion: str) -> tuple[str, int | None]:
    """The name of the criterion, and the seed of a random one, which is 0 where none is given."""
    name, _, seed = criterion.partition(":")
    if criterion == "random":
        return name, 0
    if name == "random" and seed.isascii() and seed.isdecimal() and len(seed) < 19:
        return name, int(seed)
    return criterion, None


def _scores(name: str, value: object) -> dict[str, float]:
    if not isinstance(value, Mapping) or not value:
        refuse(name, value, "a map from metrics to numbers")
    scores = {}
    for metric, score in value.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            refuse(f"{name}[{metric!r}]", score, "a number")
        found = as_float(score)
        scores[filled(f"a metric of {name}", metric)] = found if math.isfinite(found) else math.nan
    return scores


_CHECKS: Mapping[str, Check] = {
    **dict.fromkeys(("encoder", "task", "criterion", "constants", "metric"), filled),
    **dict.fromkeys(("constant_heads", "seed"), whole()),
    "total_heads": whole(1),
    "share": number(0, 1),
    "scores": _scores,
    "seconds": number(0),
    "versions": mapped(text),
    "hash": text,
    "level_weights": maybe(listed(number())),
}
