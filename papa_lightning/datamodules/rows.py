"""Checks of a task's rows: every text is there, every label is one of the task's."""

import math
from collections.abc import Mapping, Sequence
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
            raise row_error(source, row, column, f"is {found}", "give the row a text, or remove it")
        if not value.strip():
            raise row_error(source, row, column, "is empty", "give the row a text, or remove it")
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
        label = label_id(value, label_names)
        if label is None:
            found = "is missing" if _is_missing(value) else f"is {value!r}, which is no label of this task"
            remedy = f"use one of {allowed}, by number or by name"
            if _is_fraction(value):
                remedy += "; tasks with measured values (regression) are not supported: put them into classes"
            raise row_error(source, row, column, found, remedy)
        labels.append(label)
    return labels


def number_column(features: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of some columns that holds whole numbers.

    Args:
        features: Types of the columns in the datasets library.
        names: Names of the columns to choose from.

    Returns:
        The name, None if there is no such column.

    Example:
        >>> from datasets import Value
        >>> number_column({"idx": Value("string"), "id": Value("int64")}, ("idx", "id"))
        'id'
    """
    types = {name: str(getattr(features.get(name), "dtype", "")) for name in names}
    return next((name for name, kind in types.items() if kind.startswith(("int", "uint"))), None)


def class_names(feature: Any, label_names: Sequence[str]) -> list[str] | None:
    """Return the names that the numbers of a column stand for, if the data set gives them and the task knows any.

    Data sets of the hub number the same labels in different orders; names say what is meant.

    Args:
        feature: Type of the column in the datasets library, or None.
        label_names: Names of the task's labels, by number.

    Returns:
        The names by number, or None.

    Example:
        >>> from datasets import ClassLabel, List
        >>> class_names(List(ClassLabel(names=["VERB", "NOUN"])), ("NOUN", "VERB"))
        ['VERB', 'NOUN']
    """
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names and set(names) & set(label_names) else None


def named(values: Sequence[Any], names: Sequence[str] | None) -> Sequence[Any]:
    """Replace numbers by names, also in lists; what is no number with a name stays.

    Args:
        values: Values of a column.
        names: Names by number. None: the values stay as they are.

    Returns:
        The values.

    Example:
        >>> named([[1, 0], [-1]], ["VERB", "NOUN"])
        [['NOUN', 'VERB'], [-1]]
    """
    if names is None:
        return values
    return [
        named(value, names)
        if isinstance(value, list)
        else names[value]
        if isinstance(value, int) and 0 <= value < len(names)
        else value
        for value in values
    ]


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


def label_id(value: Any, label_names: Sequence[str]) -> int | None:
    """Return the number of a label; text files give numbers as text or as floats.

    Args:
        value: The label by number or by name.
        label_names: Names of the task's labels, by number.

    Returns:
        The number, or None if it is no label of the task.

    Example:
        >>> label_id("1", ("negative", "positive")), label_id("good", ("negative", "positive"))
        (1, None)
    """
    if value in label_names:
        return label_names.index(value)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(label_names)
    return value if valid else None


def _is_fraction(value: Any) -> bool:
    """Tell whether a label is a number that is not whole, also as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return math.isfinite(number) and not number.is_integer()


def _is_missing(value: Any) -> bool:
    """Tell whether a cell is empty: null, not a number, or no characters."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def row_error(source: str, row: int, column: str, found: str, remedy: str) -> DataError:
    """Describe a bad value.

    Args:
        source: What was read.
        row: Number of the row in it, from 0.
        column: Name of the column.
        found: What is wrong with the value, with its verb.
        remedy: What to do.

    Returns:
        The error, to be raised; it counts rows from 1.
    """
    return DataError(f"{source}, row {row + 1}: column {column!r} {found}: {remedy}.")
