"""Predictions: what a probe or an embedding says of every validation example, kept beside its scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from papa_lightning.embeddings import Answers
from papa_lightning.errors import PapaError, ResultFileError
from papa_lightning.files.checked import SUM
from papa_lightning.files.writing import write_atomically
from papa_lightning.tasks.counts import Counts, ratio
from papa_lightning.tasks.metrics import METRICS, Labels
from papa_lightning.tasks.scores import UNLABELLED

_FORMAT = "papa_lightning.predictions/1"
#: Format of files in which every set is of answers.
_ANSWERS_FORMAT = "papa_lightning.answers/1"
#: Losses are summed as whole numbers of this step: such sums do not depend on their order.
_LOSS_STEP = 2.0**-20
LOSS = "loss"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits and labels of one evaluation set, in the order of its rows.

    A *unit* is what has a label: an example, or a word of one.

    Args:
        logits: (n, C), float32: the logits of n units.
        labels: (n,), int64: their true labels.
        examples: (n,), int64: the number of the example of each unit, from 0, in order.
        total: Number of examples N, some of which may have no unit.
        label_names: Names of the C labels; None if they are not known.

    Raises:
        PapaError: When the shapes do not fit.
    """

    logits: Tensor
    labels: Tensor
    examples: Tensor
    total: int
    label_names: Sequence[str] | None

    def __post_init__(self) -> None:
        number = len(self.logits)
        if self.logits.dim() != 2 or not self.labels.shape == self.examples.shape == (number,):
            raise PapaError(
                f"logits are {tuple(self.logits.shape)}, labels {tuple(self.labels.shape)} and examples "
                f"{tuple(self.examples.shape)}, but must be (n, C), (n,) and (n,)."
            )
        if number and not 0 <= int(self.examples.min()) <= int(self.examples.max()) < self.total:
            raise PapaError(f"examples has numbers that are not below total, {self.total}.")

    @cached_property
    def predicted(self) -> Tensor:
        """The predicted label (n,) of every unit."""
        return self.logits.argmax(dim=-1)

    @cached_property
    def losses(self) -> Tensor:
        """The cross-entropy (n,) of every unit, in nats; float32."""
        return F.cross_entropy(self.logits, self.labels, reduction="none", ignore_index=UNLABELLED)

    def counts(self, metric: str) -> tuple[NDArray[np.float64], Counts] | None:
        """The counts (N, K) of a metric or of the loss, and its score of their sums; None where it has none."""
        return self._loss_counts() if metric == LOSS else self.counts_of(metric, self.predicted)

    def counts_of(self, metric: str, predicted: Tensor) -> tuple[NDArray[np.float64], Counts] | None:
        """The counts of a metric for other predictions (n,)."""
        found = METRICS[metric].counts(Labels(self.logits.shape[1], self.label_names)) if metric in METRICS else None
        if found is None:
            return None
        lengths = torch.bincount(self.examples, minlength=self.total)
        columns = (self._by_example(values, lengths) for values in (predicted, self.labels))
        return found.of_examples(*columns).double().numpy(), found

    def _by_example(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Values (n,) as a row (N, T) of each example, padded."""
        place = torch.arange(len(values)) - (lengths.cumsum(0) - lengths)[self.examples]
        rows = values.new_full((self.total, max(int(lengths.max()), 1)), UNLABELLED)
        rows[self.examples, place] = values
        return rows

    def _loss_counts(self) -> tuple[NDArray[np.float64], Counts]:
        steps = (self.losses.double() / _LOSS_STEP).round()
        known = (self.labels != UNLABELLED).double()
        sums = torch.zeros(self.total, 2, dtype=torch.float64)
        sums.index_add_(0, self.examples, torch.stack([steps, known], dim=1))

        def mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return ratio(sums[..., 0] * _LOSS_STEP, sums[..., 1])

        return sums.numpy(), Counts(lambda predicted, labels: predicted, mean)


Evaluation: TypeAlias = Predictions | Answers
"""What is known of one evaluation set: of a probe, or of an embedding, which is judged by pairs or queries."""


def same_examples(one: Evaluation, other: Evaluation) -> bool:
    """Whether two probes or embeddings were evaluated on the same examples."""
    if isinstance(one, Answers) or isinstance(other, Answers):
        return isinstance(one, Answers) and isinstance(other, Answers) and _same_units(one, other)
    return one.total == other.total and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("labels", "examples")
    )


def _same_units(one: Answers, other: Answers) -> bool:
    """Whether two embeddings were judged by the same pairs, or by as many queries."""
    gold = [answers.columns.get("gold") for answers in (one, other)]
    if one.kind != other.kind or number_of(one) != number_of(other):
        return False
    return gold[0] is None or gold[1] is None or torch.equal(gold[0], gold[1])


def number_of(one: Evaluation) -> int:
    """Number of examples, pairs or queries of an evaluation set."""
    return len(one) if isinstance(one, Answers) else one.total


def save_predictions(path: str | Path, sets: Mapping[str, Evaluation]) -> Path:
    """Write what is known of every example, by evaluation set, as one parquet file, whole or not at all.

    Columns of a probe: ``set``, ``example``, ``label``, and the logit of each label as ``logit_0``, ``logit_1`` and so
    on. Those of an embedding: ``set``, and the columns of its :class:`~papa_lightning.embeddings.Answers`.
    """
    table = pyarrow.concat_tables([_part(name, one) for name, one in sets.items()])
    about = {name: _about(one) for name, one in sets.items()}
    answers = any(isinstance(one, Answers) for one in sets.values())
    noted = {"format": _ANSWERS_FORMAT if answers else _FORMAT, "sets": json.dumps(about)}
    noted[SUM] = _sum(table, noted["sets"])
    content = BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(noted), content, write_page_checksum=True)
    return write_atomically(path, content.getvalue())


def load_predictions(path: str | Path) -> dict[str, Evaluation]:
    """Read what :func:`save_predictions` wrote; raises a ResultFileError for anything else."""
    place = Path(path).expanduser()
    try:
        content = BytesIO(place.read_bytes())
        table = pyarrow.parquet.read_table(content, page_checksum_verification=True)
        noted = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if noted.get("format") not in (_FORMAT, _ANSWERS_FORMAT) or noted.get(SUM) != _sum(table, noted["sets"]):
            raise ValueError(f"its format or its {SUM} is not that of its content")
        read = _read if noted["format"] == _FORMAT else _read_answers
        return {name: read(table, name, about) for name, about in json.loads(noted["sets"]).items()}
    except Exception as error:  # pyarrow does not document the errors of damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ResultFileError(
            f"predictions {str(place)!r} cannot be read ({reason}): delete it and the file of the same name that ends "
            "with .json, and run the study again."
        ) from error


def _about(one: Evaluation) -> dict[str, Any]:
    """What the file says of an evaluation set beside its columns."""
    if isinstance(one, Answers):
        return {"kind": one.kind}
    return {"total": one.total, "label_names": one.label_names and list(one.label_names)}


def _part(name: str, one: Evaluation) -> pyarrow.Table:
    number = number_of(one) if isinstance(one, Answers) else len(one.labels)
    columns: dict[str, Any] = {"set": pyarrow.array([name] * number).dictionary_encode()}
    if isinstance(one, Answers):
        return pyarrow.table(columns | {column: values.numpy() for column, values in one.columns.items()})
    columns |= {"example": one.examples.int().numpy(), "label": one.labels.int().numpy()}
    logits = one.logits.float().T.contiguous().numpy()
    return pyarrow.table(columns | {f"logit_{number}": column for number, column in enumerate(logits)})


def _read(table: pyarrow.Table, name: str, about: Mapping[str, Any]) -> Predictions:
    rows = table.filter(pyarrow.compute.equal(table["set"], name))
    example, label = (torch.from_numpy(rows[column].to_numpy().astype(np.int64)) for column in ("example", "label"))
    names = [column for column in rows.column_names if column.startswith("logit_")]
    logits = torch.from_numpy(np.stack([rows[column].to_numpy() for column in names], axis=1))
    return Predictions(logits, label, example, int(about["total"]), about["label_names"])


def _read_answers(table: pyarrow.Table, name: str, about: Mapping[str, Any]) -> Answers:
    rows = table.filter(pyarrow.compute.equal(table["set"], name))
    columns = [column for column in rows.column_names if column != "set"]
    return Answers(about["kind"], {column: torch.from_numpy(rows[column].to_numpy().copy()) for column in columns})


def _sum(table: pyarrow.Table, noted: str) -> str:
    found = hashlib.sha256(noted.encode())
    for name in table.column_names:
        column = table[name]
        values = column.cast(pyarrow.string()).to_pylist() if name == "set" else column.to_numpy()
        found.update("\n".join(values).encode() if name == "set" else np.ascontiguousarray(values).data)
    return found.hexdigest()
