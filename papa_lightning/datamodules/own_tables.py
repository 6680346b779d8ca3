"""Tables of one's own: which columns hold texts and labels, and a split for validation where there is none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value
from scipy.stats import norm

from papa_lightning.checks import as_label_names, number_of
from papa_lightning.datamodules.reading.files import find_split_files, missing_split, read_split
from papa_lightning.datamodules.reading.formats import ID_COLUMNS
from papa_lightning.datamodules.rows.checks import HIDDEN_LABEL
from papa_lightning.errors import DataError, did_you_mean
from papa_lightning.files.writing import staged_folder

#: Names of columns that hold the label wherever they occur, the most telling first.
_LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "tag", "kind")
#: Share of the rows that is split off for validation, the most of them, and the seed of all draws.
_SHARE, _MOST, _SEED = 0.2, 2000, 0
_FEWEST, _MOST_LABELS = 10, 100
#: Files that are written: rows to train on, and rows to validate on.
SPLIT_FILES = ("train.jsonl", "validation.jsonl")


@dataclass(frozen=True)
class TextTable:
    """Texts with labels, each row complete.

    Args:
        frame: Columns of the texts and of the label, all of text, and `idx`, the place of the row in its file from 0.
        texts: Column of the text, or columns of the first and of the second text of a pair.
        label: Column of the label.
        source: The file, for messages.
    """

    frame: pd.DataFrame
    texts: tuple[str, ...]
    label: str
    source: str

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels: numbers by size, then others by the alphabet."""
        found = self.frame[self.label].unique()
        return as_label_names(sorted(found, key=lambda name: (number_of(name) is None, number_of(name) or 0, name)))

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each label, the most frequent first."""
        return {str(name): int(number) for name, number in self.frame[self.label].value_counts().items()}

    def words(self, share: float) -> float:
        """Number of words, of both texts of a pair, that this share of the rows does not exceed."""
        return float(sum(self.frame[name].str.split().str.len() for name in self.texts).quantile(share))

    def at(self, places: Any) -> "TextTable":
        """The rows at some places."""
        return replace(self, frame=self.frame.iloc[places])


def read_splits(
    path: Path, text: str | None = None, text_pair: str | None = None, label: str | None = None
) -> tuple[TextTable, TextTable, list[str]]:
    """Read texts and labels, guess the columns that are not named, and split rows off where there is no validation.

    Rows that lack a text or the label, or repeat a text, are left out; those to train on are shuffled.

    Args:
        path: A file that data modules read, or a folder with such files, `train` and perhaps `validation`.
        text: Column of the text; None: the column with the longest texts.
        text_pair: Column of the second text of pairs.
        label: Column of the label; None: one that is called so, or the one with the fewest different values.

    Returns:
        Rows to train on, rows to validate on, and lines that say what was chosen and left out.

    Raises:
        DataError: A file cannot be read, a column is missing or not what it should be, or nothing can be learned.
    """
    files = find_split_files(path, ("train", "validation")) if path.is_dir() else {"train": path}
    if "train" not in files:
        raise missing_split(path, "train")
    train, notes = _read(files["train"], text, text_pair, label)
    _check_learnable(train)
    if "validation" in files:
        validation, more = _read(files["validation"], train.texts[0], text_pair, train.label)
        _check_enough(train)
        train = train.at(np.random.default_rng(_SEED).permutation(len(train.frame)))
        return train, validation, [*notes, *more[2:], f"rows     {_numbers(train, validation)}"]
    train, lost = _without_single_labels(train)
    train, validation = _split(train)
    made = f"rows     {_numbers(train, validation)}, drawn within each label: there is no file for validation"
    return train, validation, [*notes, *lost, made]


def write_splits(folder: Path, train: TextTable, validation: TextTable, replace_old: bool = False) -> None:
    """Write a folder with the files `train.jsonl` and `validation.jsonl`."""
    write_frames(folder, train.frame, validation.frame, replace_old)


def write_frames(folder: Path, train: pd.DataFrame, validation: pd.DataFrame, replace_old: bool) -> None:
    """Write the `SPLIT_FILES` of a folder."""
    with staged_folder(folder, replace=replace_old) as staged:
        for name, frame in zip(SPLIT_FILES, (train, validation), strict=True):
            frame.to_json(staged / name, orient="records", lines=True, force_ascii=False)


def _numbers(train: TextTable, validation: TextTable) -> str:
    points = 100 * norm.ppf(0.975) * 0.5 / len(validation.frame) ** 0.5  # the normal interval, widest at one half
    return (
        f"{len(train.frame):,} to train on, {len(validation.frame):,} to validate on (accuracy within "
        f"{points:.0f} points)"
    )


def _read(path: Path, text: str | None, text_pair: str | None, label: str | None) -> tuple[TextTable, list[str]]:
    """The complete rows of a file, and lines for text, label and rows that were left out."""
    rows, source = read_split(path), repr(str(path))
    _check_header(rows, source, known=any((text, text_pair, label)))
    for argument, name in (("text", text), ("text_pair", text_pair), ("label", label)):
        if name is not None:
            check_column(rows, argument, name, source)
    frame = rows.to_pandas()
    values = {name: frame[name].map(_label_text) for name in _value_columns(rows, frame)}
    frame = frame.assign(**{**values, "idx": range(len(frame))})
    known = label or next((name for name in _LABEL_COLUMNS if name in frame and name not in (text, text_pair)), None)
    first = text or longest_column(rows, frame, (known, text_pair), source)
    texts = (first,) if text_pair is None else (first, text_pair)
    label = known or _fewest_values(list(values), frame, texts, source)
    if label not in values:
        found = next(row for row, value in enumerate(frame[label]) if not _is_single(value))
        raise DataError(
            f"label is {label!r}, a column of {source} with {rows[found][label]!r} in row {found + 1}, not one label a "
            "row: name another column with --label, or write one label a row."
        )
    if label in texts or len(set(texts)) < len(texts):
        raise DataError(f"text, text_pair and label are {[*texts, label]} of {source}: name different columns.")
    others = [name for name in _text_columns(rows) if name not in (*texts, label)]
    table, lost = _complete(TextTable(frame, texts, label, source))
    listed = [f"{name} {number:,}" for name, number in table.counts.items()]
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    said = f"text     {' and '.join(texts)}" + (f" (not read: {', '.join(others)})" if others else "")
    return table, [said, f"label    {label}: {', '.join(listed[:8])}{more}", *lost]


def _without_single_labels(table: TextTable) -> tuple[TextTable, list[str]]:
    """The table without labels that one row has, which cannot be both learned and tested."""
    alone = [name for name, number in table.counts.items() if number == 1]
    if not alone:
        return table, []
    kept = replace(table, frame=table.frame[~table.frame[table.label].isin(alone)])
    return kept, [f"left out labels that only one row has: {', '.join(alone)}"]


def _split(table: TextTable) -> tuple[TextTable, TextTable]:
    """Rows to train on and to validate on, drawn within each label."""
    _check_enough(table)
    names = table.label_names
    size = max(min(round(_SHARE * len(table.frame)), _MOST), len(names))
    numbers = {"label": list(table.frame[table.label].map(names.index)), "place": list(range(len(table.frame)))}
    kinds = Features({"label": ClassLabel(names=list(names)), "place": Value("int64")})
    places = Dataset.from_dict(numbers, features=kinds)
    drawn = places.train_test_split(test_size=size, stratify_by_column="label", seed=_SEED)
    return table.at(drawn["train"]["place"]), table.at(drawn["test"]["place"])


def _check_header(rows: Dataset, source: str, known: bool) -> None:
    """Refuse a table whose first line is a row, or that separates its fields in another way.

    Args:
        rows: The table.
        source: The file, for messages.
        known: Whether columns are named, so that long names are questions of a survey, as beside a column of labels.
    """
    names = rows.column_names
    if len(names) == 1 and (mark := next((one for one in ";\t|" if one in names[0]), None)):
        raise DataError(
            f"{source} has the single column {names[0]!r}: its fields are separated by {mark!r}, but those of .csv "
            "files by ',' and those of .tsv files by tabs: save it once more in one of these ways."
        )
    if not known and not set(names) & set(_LABEL_COLUMNS) and any(name.strip().count(" ") > 4 for name in names):
        raise DataError(
            f"{source} has a column {max(names, key=len)!r}: write the names of the columns into line 1, "
            "or name columns with --text and --label if these are names."
        )


def check_column(rows: Dataset, argument: str, name: str, source: str) -> None:
    """Refuse a column that a table does not have, or that holds no texts and is no label or score."""
    if name not in rows.column_names:
        end, found = did_you_mean(name, rows.column_names) or ".", ", ".join(map(repr, rows.column_names))
        raise DataError(f"{argument} is {name!r}, which is no column of {source}{end} Its columns are {found}.")
    if argument not in ("label", "score") and name not in _text_columns(rows):
        raise DataError(
            f"{argument} is {name!r}, a column of {source} that holds no texts ({_kind(rows, name)}): name another one."
            " For lists of words with tags see TokenClassificationDataModule in docs/tasks.md."
        )


def _kind(rows: Dataset, name: str) -> str:
    return str(getattr(rows.features[name], "dtype", "lists"))


def _text_columns(rows: Dataset) -> list[str]:
    return [name for name in rows.column_names if _kind(rows, name) in ("string", "large_string")]


def _value_columns(rows: Dataset, frame: pd.DataFrame) -> list[str]:
    """Columns of single values, also of several types."""
    return [name for name in rows.column_names if frame[name].map(_is_single).all()]


def _is_single(value: object) -> bool:
    return not isinstance(value, (list, dict, np.ndarray))


def _label_text(value: Any) -> str | None:
    """A label as data modules name it; None for a missing one."""
    if value == "" or pd.isna(value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def longest_column(rows: Dataset, frame: pd.DataFrame, used: Sequence[str | None], source: str) -> str:
    """The column with the longest texts."""
    lengths = {name: frame[name].str.len().mean() for name in _text_columns(rows) if name not in used}
    if not lengths:
        raise DataError(
            f"{source} has no column of texts beside the label; its columns are {', '.join(map(repr, frame))}: name it "
            "with --text. For lists of words with tags see TokenClassificationDataModule in docs/tasks.md."
        )
    return max(lengths, key=lambda name: lengths[name])


def _fewest_values(columns: Sequence[str], labelled: pd.DataFrame, texts: Sequence[str], source: str) -> str:
    """Of some columns the one that is no text and has the fewest different values, two or more."""
    names = [name for name in columns if name not in (*texts, *ID_COLUMNS)]
    values = {name: labelled[name].nunique() for name in names}
    most = max(2, min(_MOST_LABELS, len(labelled) // 5))
    fitting = {name: number for name, number in values.items() if 2 <= number <= most}
    if not fitting:
        found = ", ".join(f"{name!r} {number}" for name, number in values.items()) or "no other column"
        raise DataError(
            f"{source} has no column that looks like a label, with 2 to {most} different values ({found}): name it "
            "with --label, or add one. Texts without labels cannot be scored."
        )
    return min(fitting, key=lambda name: fitting[name])


def _complete(table: TextTable) -> tuple[TextTable, list[str]]:
    """The rows that have texts and a label, each text once, and a line for the others."""
    _check_labels(table)
    frame, texts = table.frame, list(table.texts)
    empty = frame[texts].apply(lambda column: column.fillna("").str.strip() == "").any(axis=1)
    unlabelled = frame[table.label].isna() & ~empty
    repeated = frame[~empty & ~unlabelled].duplicated(texts).reindex(frame.index, fill_value=False)
    lost = {"without text": empty, "without label": unlabelled, "with a text that stands above": repeated}
    said = [f"{rows.sum():,} {reason}" for reason, rows in lost.items() if rows.any()]
    kept = frame.loc[~(empty | unlabelled | repeated), [*texts, table.label, "idx"]]
    return replace(table, frame=kept), [f"left out rows: {', '.join(said)}"] if said else []


def _check_labels(table: TextTable) -> None:
    """Refuse texts without labels."""
    if list(table.frame[table.label].dropna().unique()) in ([], [str(HIDDEN_LABEL)]):
        raise DataError(
            f"column {table.label!r} of {table.source} holds no labels, and texts without labels cannot be scored: add "
            "them, or --label."
        )


def _check_learnable(table: TextTable) -> None:
    """Refuse labels that no class can be learned from."""
    values, where = table.frame[table.label], f"column {table.label!r} of {table.source}"
    found = list(values.unique())
    if len(found) == 1:
        raise DataError(
            f"{where} holds the single label {found[0]!r} in all {len(values):,} rows, but there must be two "
            "or more: add rows of another class, or name another column with --label."
        )
    if len(found) > max(_MOST_LABELS, len(values) // 5) or 2 * len(found) > max(len(values), 4):
        numbers = [number for name in found if (number := number_of(name)) is not None]
        measured = len(numbers) == len(found)
        why = "Measured values (regression) are not supported: put them into classes" if measured else "Merge classes"
        raise DataError(
            f"{where} has {len(found):,} different values in {len(values):,} rows, too many to learn. {why}, or name "
            "another column with --label."
        )


def _check_enough(table: TextTable) -> None:
    if len(table.frame) < _FEWEST or len(set(table.frame[table.label])) < 2:
        raise DataError(
            f"{table.source} holds {len(table.frame)} rows with text and a label that another row has as well, too "
            f"few to train on some and validate on others: add rows, at least {_FEWEST}; hundreds are better."
        )
