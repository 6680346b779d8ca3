"""Checks of rows: no text is missing, and every label belongs to the task."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from datasets import Dataset

from papa_lightning.checks import number_of
from papa_lightning.either_lightning import rank_zero_warn
from papa_lightning.errors import DataError

HIDDEN_LABEL = -1
"""Label of the rows of a public test split whose labels are secret."""


def check_columns(found: Sequence[str], needed: Sequence[str], source: str) -> None:
    """Refuse rows that lack a column that the task reads."""
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(
            f"{source} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, found))}: "
            "rename the column, or use the data module of another task."
        )


def check_texts(values: Sequence[Any], rows: Sequence[int], column: str, source: str) -> list[str]:
    """The texts of a column, none of them missing or empty; `rows` are their numbers in the file, from 0."""
    for value, row in zip(values, rows, strict=True):
        if not isinstance(value, str):
            found = "missing" if _is_missing(value) else f"{value!r}, not a text"
            remedy = "give the row a text (in JSON between quotation marks, also if it is a number), or remove it"
            raise row_error(source, row, column, f"is {found}", remedy)
        if not value.strip():
            raise row_error(source, row, column, "is empty", "give the row a text, or remove it")
    return list(values)


def label_ids(
    values: Sequence[Any], rows: Sequence[int], label_names: Sequence[str], column: str, source: str
) -> list[int]:
    """The labels of a column as numbers, see `label_id`; `rows` are their numbers in the file, from 0."""
    labels = []
    for value, row in zip(values, rows, strict=True):
        label = label_id(value, label_names)
        if label is None:
            found = "is missing" if _is_missing(value) else f"is {value!r}, which is no label of this task"
            remedy = f"use one of {allowed_labels(label_names)}"
            if isinstance(value, bool):
                remedy += "; to use truth values, name the labels 'false' and 'true' in label_names"
            elif _is_fraction(value):
                remedy += "; tasks with measured values (regression) are not supported: put them into classes"
            raise row_error(source, row, column, found, remedy)
        labels.append(label)
    return labels


def allowed_labels(label_names: Sequence[str]) -> str:
    """Values that stand for labels, for messages."""
    if _numbers(tuple(label_names)):
        return f"{', '.join(map(repr, label_names))}, by name only because names are numbers"
    return ", ".join(f"{number} ({name})" for number, name in enumerate(label_names)) + ", by number or by name"


def number_column(rows: Dataset, names: Sequence[str], source: str) -> str | None:
    """The first of some columns with only whole numbers; warn of one that has some."""
    for name in names:
        if not str(getattr(rows.features.get(name), "dtype", "")).startswith(("int", "uint", "float")):
            continue
        values = list(rows[name])
        given = [value for value in values if not _is_missing(value)]
        if not given or any(value != int(value) or abs(value) >= 2**63 for value in given if math.isfinite(value)):
            continue
        if len(given) < len(values) or not all(map(math.isfinite, given)):
            row = next(row for row, value in enumerate(values) if _is_missing(value) or not math.isfinite(value))
            rank_zero_warn(
                f"{source}, row {row + 1}: column {name!r} is missing, though other rows have whole numbers there, so "
                "predictions name rows by their place: give each row a number, or remove the column."
            )
            continue
        return name
    return None


def class_names(feature: Any, label_names: Sequence[str]) -> list[str] | None:
    """The names of the numbers in a column, if the data set numbers its classes."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if not names or set(names) & set(label_names):
        return list(names) if names else None
    if len(names) != len(label_names):
        raise DataError(
            f"label_names is {list(label_names)!r}, but the data set has {len(names)} classes of other names, "
            f"{', '.join(map(repr, names))}: name those."
        )
    return list(label_names)  # as many classes of other names are in the order of the task


def named(values: Sequence[Any], names: Sequence[str] | None) -> Sequence[Any]:
    """Replace numbers by names, also in lists; other values stay.

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


def is_labelled(values: Sequence[Any], label_names: Sequence[str] = ()) -> bool:
    """Whether a column holds any label that is not missing or hidden: many test splits are published without."""
    return not all(_is_missing(value) or is_hidden(value, label_names) for value in values)


def is_hidden(value: Any, label_names: Sequence[str], hidden: Sequence[int] = (HIDDEN_LABEL,)) -> bool:
    """Whether a value marks a secret label: one of some numbers that are no names of labels."""
    return number_of(value) in hidden and label_id(value, label_names) is None


def label_id(value: Any, label_names: Sequence[str]) -> int | None:
    """The number of a label, None for no label of the task; a value means the same in files with and without types.

    A text that is the name of a label is that label. Where names are numbers, an equal number is that name: 1, "1" and
    1.0 are the label "1", whatever its place. Otherwise a whole number is the place of a label. Truth values are the
    labels named "true" and "false", in any case.

    Example:
        >>> label_id(1, ("1", "2", "3")), label_id("2.0", ("1", "2", "3")), label_id(0, ("1", "2", "3"))
        (0, 1, None)
    """
    if isinstance(value, str) and value in label_names:
        return label_names.index(value)
    if str(value).lower() in ("true", "false"):
        found = [number for number, name in enumerate(label_names) if name.lower() == str(value).lower()]
        return found[0] if len(found) == 1 else None
    number = number_of(value)
    if number is None:
        return None
    if names := _numbers(tuple(label_names)):
        return names.get(number)
    return int(number) if number == number.to_integral_value() and 0 <= number < len(label_names) else None


@lru_cache(maxsize=32)  # called for every word of a data set
def _numbers(label_names: tuple[str, ...]) -> Mapping[Decimal, int]:
    """Places of the labels whose names are numbers, by that number."""
    return {number: place for place, name in enumerate(label_names) if (number := number_of(name)) is not None}


def _is_fraction(value: Any) -> bool:
    """Whether a label is a number that is not whole, also as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return math.isfinite(number) and not number.is_integer()


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty: null, not a number, or no characters."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def row_error(source: str, row: int, column: str, found: str, remedy: str) -> DataError:
    """The error for a bad value; it counts rows from 1."""
    return DataError(f"{source}, row {row + 1}: column {column!r} {found}: {remedy}.")
