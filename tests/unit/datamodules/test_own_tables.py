"""Columns of one's own tables are guessed, their rows checked, and a split for validation made."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from papa_lightning import TextClassificationDataModule
from papa_lightning.datamodules.own_tables import read_splits, write_splits
from papa_lightning.errors import DataError

TEXTS = [f"a text of some words, number {number}" for number in range(30)]
KINDS = ["bug", "wish", "question"] * 10


def table(path: Path, columns: dict[str, list[Any]]) -> Path:
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([tuple(columns), *rows])
    else:
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_columns_are_guessed_and_said(tmp_path: Path) -> None:
    days = [f"day {number}" for number in range(30)]
    path = table(tmp_path / "tickets.csv", {"id": list(range(30)), "day": days, "title": TEXTS, "group": KINDS})
    train, validation, notes = read_splits(path)
    assert (train.texts, train.label, train.label_names) == (("title",), "group", ("bug", "question", "wish"))
    assert notes[:2] == ["text     title (not read: day)", "label    group: bug 10, wish 10, question 10"]
    assert "24 to train on, 6 to validate on" in notes[-1]
    assert validation.counts == {"bug": 2, "wish": 2, "question": 2}
    assert not set(train.frame["title"]) & set(validation.frame["title"])
    again, _, _ = read_splits(path)
    assert list(again.frame["idx"]) == list(train.frame["idx"])
    write_splits(tmp_path / "data", train, validation)
    data = TextClassificationDataModule(
        "none", list(train.label_names), "title", "group", data_dir=str(tmp_path / "data")
    )
    rows = data.load_split("validation")
    assert rows is not None
    assert {TEXTS[row["idx"]] for row in rows} == set(rows["title"]) == set(validation.frame["title"])


def test_a_column_that_is_called_label_goes_before_one_with_fewer_values(tmp_path: Path) -> None:
    stars = [1, 2, 3, 4, 5] * 6
    path = table(tmp_path / "a.jsonl", {"text": TEXTS, "seen": [True, False] * 15, "label": stars})
    assert read_splits(path)[0].label_names == ("1", "2", "3", "4", "5")
    train, _, _ = read_splits(path, label="seen")
    assert (train.label, train.label_names) == ("seen", ("false", "true"))


@pytest.mark.parametrize(("label", "named"), [("label", {}), ("mood", {"label": "mood"})])
def test_a_header_may_be_a_question(tmp_path: Path, label: str, named: dict[str, str]) -> None:
    question = "What did you like about the product?"
    train, _, _ = read_splits(table(tmp_path / "survey.csv", {question: TEXTS, label: KINDS}), **named)
    assert (train.texts, train.label) == ((question,), label)


@pytest.mark.parametrize(
    ("labels", "names"),
    [([1, "unknown"], ("1", "unknown")), ([1, 0.5], ("0.5", "1")), ([True, "maybe"], ("maybe", "true"))],
)
def test_labels_of_several_types(tmp_path: Path, labels: list[Any], names: tuple[str, ...]) -> None:
    train, validation, _ = read_splits(table(tmp_path / "a.jsonl", {"text": TEXTS, "label": labels * 15}))
    assert train.label_names == validation.label_names == names


@pytest.mark.parametrize("values", [[["a", "b"], ["a"]], [{"a": 1}, {"b": 2}], [["a"], "a"]])
def test_labels_that_are_lists_are_refused(tmp_path: Path, values: list[Any]) -> None:
    path = table(tmp_path / "a.jsonl", {"text": TEXTS, "labels": values * 15})
    with pytest.raises(DataError, match=r"label is 'labels', a column of .* with .* in row 1, not one label .*--label"):
        read_splits(path)


def test_a_small_file_for_validation_may_have_all_labels(tmp_path: Path) -> None:
    labels = [f"label {number % 6}" for number in range(30)]
    table(tmp_path / "train.csv", {"text": TEXTS, "label": labels})
    table(tmp_path / "validation.csv", {"text": TEXTS[:8], "label": labels[:8]})
    assert len(read_splits(tmp_path)[1].label_names) == 6


def test_rows_that_teach_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    texts, kinds = [*TEXTS, "", "no label", TEXTS[0], "alone"], [*KINDS, "bug", "", "bug", "odd"]
    train, validation, notes = read_splits(table(tmp_path / "a.csv", {"text": texts, "kind": kinds}))
    assert "left out rows: 1 without text, 1 without label, 1 with a text that stands above" in notes
    assert "left out labels that only one row has: odd" in notes
    assert len(train.frame) + len(validation.frame) == 30


def test_folders_and_pairs(tmp_path: Path) -> None:
    columns = {"question": TEXTS, "answer": TEXTS[::-1], "label": KINDS, "idx": list(range(7, 37))}
    table(tmp_path / "train.csv", columns)
    table(tmp_path / "validation.csv", {name: values[:12] for name, values in columns.items()})
    train, validation, _ = read_splits(tmp_path, text="question", text_pair="answer")
    assert (train.texts, len(train.frame), len(validation.frame)) == (("question", "answer"), 30, 12)
    assert list(train.frame["idx"]) != list(range(30))  # shuffled: a study may read the first rows only


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"text": TEXTS, "label": ["bug"] * 30}, {}, "single label 'bug' in all 30 rows"),
        ({"text": TEXTS, "label": [""] * 30}, {}, "holds no labels"),
        ({"text": TEXTS, "label": ["-1"] * 30}, {}, "holds no labels"),
        ({"text": TEXTS}, {}, "no column that looks like a label, .* name it with --label"),
        ({"text": TEXTS, "label": [f"{n}.5" for n in range(30)]}, {}, "30 different values in 30 rows.*regression"),
        ({"text": TEXTS, "kind": KINDS}, {"label": "knid"}, "Did you mean 'kind'.* Its columns are 'text', 'kind'"),
        ({"text": TEXTS, "kind": KINDS}, {"text": "Txt"}, "Did you mean 'text'"),
        ({"text": TEXTS, "kind": KINDS}, {"text": "kind", "label": "kind"}, "name different columns"),
        ({"text": TEXTS[:6], "kind": KINDS[:6]}, {}, "6 rows .* too few"),
        ({"text;kind": TEXTS}, {}, "separated by ';'"),
        ({"this film was a great joy to watch": TEXTS, "1": KINDS}, {}, "names of the columns into line 1"),
        ({"text": [], "kind": []}, {}, "holds no rows"),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], named: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_splits(table(tmp_path / "a.csv", columns), **named)


def test_columns_without_texts_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.jsonl", {"tokens": [["a", "b"]] * 30, "label": KINDS})
    with pytest.raises(DataError, match=r"no column of texts.*TokenClassificationDataModule"):
        read_splits(path)
    with pytest.raises(DataError, match=r"text is 'tokens', .* holds no texts"):
        read_splits(path, text="tokens")
