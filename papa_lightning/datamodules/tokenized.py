"""Data modules of rows that were tokenised before, and the rows of somebody else's data module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, List, Value
from torch import Tensor
from torch.utils.data import DataLoader

from papa_lightning.checks import as_text
from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.rows.checks import label_ids
from papa_lightning.errors import DataError

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LABELS = ("labels", "label")
#: Rows of a batch of which the collate function of a loader makes tensors.
_READ = 64


class TokenizedDataModule(TaskDataModule):
    """Rows of token ids with one label each, of files that hold what a tokenizer made.

    Files have the columns `input_ids`, `attention_mask`, `token_type_ids` where the encoder reads it, and `label`; rows
    may be shorter than `max_length`. They fit encoders with the tokenizer that made them only. For the other arguments
    see `TaskDataModule`.

    Args:
        tokenizer: Name or folder of the tokenizer that made the rows.
        data_dir: Folder with one file per split.
        label_names: Names of the labels, by number.
        metrics: Names of the metrics; the first one is the score.
        task_name: Name of the task, for messages.
        max_length: Number of slots T of every row.
        **kwargs: Other arguments of `TaskDataModule`.

    Raises:
        PapaError: An argument is out of range.
    """

    optional_columns = _INPUTS[2:]

    def __init__(
        self,
        tokenizer: str,
        data_dir: str,
        label_names: Sequence[str],
        metrics: Sequence[str] = ("accuracy",),
        task_name: str = "tokenized",
        max_length: int = 64,
        **kwargs: Any,
    ) -> None:
        self.label_names, self.metrics = tuple(label_names), tuple(metrics)
        self.task_name = as_text("task_name", task_name)
        super().__init__(tokenizer, data_dir, max_length=max_length, **{"layout": "plain", **kwargs})

    def needed_columns(self, labelled: bool) -> list[str]:
        """Names of the columns that `encode` reads."""
        return [*_INPUTS[:2], *([self.label_column] if labelled else [])]

    def features(self, labelled: bool) -> dict[str, Any]:
        """Types in which the columns of `encode` are stored."""
        row = List(Value("int32"), length=self.max_length)
        return {**super().features(labelled), **dict.fromkeys(_INPUTS, row)}

    def encode(self, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], where: str) -> dict[str, list[Any]]:
        """Pad n rows to T slots; see `TaskDataModule.encode`."""
        lengths = [len(row) for row in columns["input_ids"]]
        if max(lengths, default=0) > self.max_length:
            raise DataError(
                f"{where} has {max(lengths)} tokens in a row, but max_length is {self.max_length}: raise it."
            )
        found: dict[str, list[Any]] = {"truncated": [False] * len(lengths)}
        for name in _INPUTS:
            given = columns.get(name) or [[0] * length for length in lengths]
            found[name] = [[*row, *[0] * (self.max_length - len(row))] for row in given]
        if self.label_column in columns:
            values = columns[self.label_column]
            found["labels"] = label_ids(values, rows, self.label_names, self.label_column, where)
        return found


def tokenized_rows(name: str, data: Any) -> dict[str, Dataset]:
    """The rows of training and validation of somebody else's data module, in the order of its data sets.

    Args:
        name: Name of the data, for messages.
        data: A LightningDataModule whose batches have `input_ids`, `attention_mask` and one `labels` (or `label`) each.

    Raises:
        DataError: When its loaders or batches are something else.
    """
    data.prepare_data()
    data.setup("fit")
    loaders = {"train": data.train_dataloader(), "validation": data.val_dataloader()}
    return {split: Dataset.from_list(list(_rows_of(f"{name}, {split}", one))) for split, one in loaders.items()}


def _rows_of(name: str, loader: Any) -> Iterator[dict[str, Any]]:
    loader = loader[0] if isinstance(loader, (list, tuple)) and len(loader) == 1 else loader
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
        raise DataError(
            f"{name} is loaded by a {type(loader).__name__}, but must be a DataLoader of rows with a length."
        )
    for batch in DataLoader(loader.dataset, batch_size=_READ, collate_fn=loader.collate_fn):  # in order, and each once
        labels = next((batch[key] for key in _LABELS if key in batch), None) if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor) or labels.dim() != 1 or not all(key in batch for key in _INPUTS[:2]):
            keys = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise DataError(
                f"{name} has batches of {keys}, but a study reads input_ids, attention_mask, and one label for each "
                "row: derive the data module from TaskDataModule for other tasks."
            )
        ends = batch["attention_mask"].long().cumsum(1).argmax(1).tolist()
        kept = [key for key in _INPUTS if key in batch]
        for row, end in enumerate(ends):
            tokens = {key: batch[key][row, : end + 1].to(torch.int64).tolist() for key in kept}
            yield {**tokens, "label": int(labels[row])}
