"""Base of data modules for one or two texts with one label."""

from collections.abc import Mapping, Sequence
from typing import Any

from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.rows.checks import check_texts, label_ids
from papa_lightning.datamodules.rows.tokenizing import tokenize


class TextDataModule(TaskDataModule):
    """Base of the data modules whose rows are one or two texts with one label.

    A subclass has the facts of its task as class attributes, see `CoLADataModule`. `labels` of a batch are (B,). For
    the arguments see `TaskDataModule`.
    """

    text_columns: tuple[str, ...]
    """One column, or two for a pair of texts."""

    @property
    def fewest_slots(self) -> int:
        """Smallest number of slots that leaves one for every text; of a pair, CLS x - | SEP SEP x SEP."""
        return 7 if len(self.text_columns) == 2 else 4

    def needed_columns(self, labelled: bool) -> list[str]:
        """Names of the columns that `encode` reads."""
        return [*self.text_columns, *([self.label_column] if labelled else [])]

    def encode(self, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], where: str) -> dict[str, list[Any]]:
        """Check n rows and turn them into columns of numbers; see `TaskDataModule.encode`."""
        texts = [check_texts(columns[name], rows, name, where) for name in self.text_columns]
        encoded = tokenize(self.tokenizer, texts, self.max_length, self.layout, self.preset)
        if self.label_column in columns:
            values = columns[self.label_column]
            encoded["labels"] = label_ids(values, rows, self.label_names, self.label_column, where)
        return encoded
