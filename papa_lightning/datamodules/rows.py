"""Checks of a task's rows: every text is there, every label is one of the task's."""

import math
from collections.abc import Sequence
from typing import Any

from papa_lightning.exceptions import DataError

HIDDEN_LABEL = -1
"""What a public data set gives as the label of a test row whose label is kept secret."""


def check_columns(found: Sequence[str], needed: Sequence[str], source: str) -> None:
    """Refuse rows that lack a column.

    Args:
        found: Names of the columns.
        needed: Names of the columns that the task reads.
        source: What was read, for the message.

    Raises:
        DataError: A column is missing.
    """
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(
            f"{source} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, found))}: "
            "rename the column, or use the data module of another task."
        )


def check_texts(values: Sequence[Any], rows: Sequence[int], column: str, source: str) -> list[str]:
    """Return the texts of one column, all of them non-empty.

    Args:
        values: The column's values.
        rows: Number of each row in its file, from 0.
        column: Name of the column.
        source: What was read, for the message.

    Returns:
        The values as they are.

    Raises:
        DataError: A value is missing, is no string, or holds nothing but white space.

    Example:
        >>> check_texts(["a film"], [0], "sentence", "train.jsonl")
        ['a film']
    """
    for value, row in zip(values, rows, strict=True):
        if not isinstance(value, str):
            found = "missing" if _is_missing(value) else f"{value!r}, not a text"
            raise _row_error(source, row, column, f"is {found}", "give the row a text, or remove it")
        if not value.strip():
            raise _row_error(source, row, column, "is empty", "give the row a text, or remove it")
    return list(values)


def label_ids(
    values: Sequence[Any], rows: Sequence[int], label_names: Sequence[str], column: str, source: str
) -> list[int]:
    """Return the labels of one column as numbers; a label may be given by number or by name.

    Args:
        values: The column's values.
        rows: Number of each row in its file, from 0.
        label_names: Names of the task's labels, by number.
        column: Name of the column.
        source: What was read, for the message.

    Returns:
        One number from 0 to len(label_names) - 1 per row.

    Raises:
        DataError: A label is missing, out of range, or no name of a label.

    Example:
        >>> label_ids([1, "negative"], [0, 1], ("negative", "positive"), "label", "train.jsonl")
        [1, 0]
    """
    allowed = ", ".join(f"{number} ({name})" for number, name in enumerate(label_names))
    labels = []
    for value, row in zip(values, rows, strict=True):
        label = _label_id(value, label_names)
        if label is None:
            found = "is missing" if _is_missing(value) else f"is {value!r}, which is no label of this task"
            raise _row_error(source, row, column, found, f"use one of {allowed}, by number or by name")
        labels.append(label)
    return labels


def is_labelled(values: Sequence[Any]) -> bool:
    """Tell whether a column of labels holds any: test splits are often published without.

    Args:
        values: The column's values.

    Returns:
        False if every value is missing or hidden (-1).

    Example:
        >>> is_labelled([-1, None]), is_labelled([-1, 0])
        (False, True)
    """
    return not all(_is_missing(value) or value in (HIDDEN_LABEL, str(HIDDEN_LABEL)) for value in values)


def _label_id(value: Any, label_names: Sequence[str]) -> int | None:
    """Number of a label, None if it is not one; text files give numbers as text or as floats."""
    if value in label_names:
        return label_names.index(value)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(label_names)
    return value if valid else None


def _is_missing(value: Any) -> bool:
    """Tell whether a cell is empty: null, not a number, or no characters."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _row_error(source: str, row: int, column: str, found: str, remedy: str) -> DataError:
    """Name the source, the row from 1 and the column of a bad value."""
    return DataError(f"{source}, row {row + 1}: column {column!r} {found}: {remedy}.")
