"""A value means the same in files of every kind."""

import gzip
import json

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from papa_lightning.datamodules import TextClassificationDataModule
from papa_lightning.errors import DataError, PapaError

STARS = ["1", "2", "3", "4", "5"]
KINDS = ["jsonl", "json", "csv", "tsv", "parquet", "csv.gz", "jsonl.gz"]


def write(path, rows):
    """Write rows as the library of the world does: pandas."""
    frame = pd.DataFrame(rows)
    kind = path.name.split(".")[1]
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind in ("csv", "tsv"):
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    else:
        frame.to_json(path, orient="records", lines=kind == "jsonl")


@pytest.fixture
def labels_of(tmp_path, bert_folder):
    """Names of the labels that a data module reads for values of a column."""

    def labels(values, names, kind="jsonl", **arguments):
        for split in ("train", "validation"):
            write(tmp_path / f"{split}.{kind}", [{"text": "a film", "label": value} for value in values])
        data = TextClassificationDataModule(
            bert_folder, names, data_dir=str(tmp_path), max_length=8, batch_size=len(values), **arguments
        )
        data.setup("fit")
        (batch,) = data.val_dataloader()
        return [data.label_names[label] for label in batch["labels"]]

    return labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 5, 3], STARS),
        (["1", "5", "3"], STARS),
        ([1.0, 5.0, 3.0], STARS),
        ([1, 0, 0], ["1", "0"]),
        ([-1, 1, 0], ["-1", "0", "1"]),
        ([-1, -1, 0], ["-1", "0"]),
        ([0.5, 1.0, 0.0], ["0", "0.5", "1"]),
        ([2012, 2013, 2012], ["2012", "2013"]),
        ([1, 2, 1], [1, 2]),
    ],
)
def test_where_names_are_numbers_a_number_is_a_name(labels_of, kind, values, names):
    names_by_number = {float(name): str(name) for name in names}
    assert labels_of(values, names, kind) == [names_by_number[float(value)] for value in values]


@pytest.mark.parametrize("kind", KINDS)
def test_elsewhere_a_number_is_a_place(labels_of, kind):
    assert labels_of([1, 0, 1], ["no", "yes"], kind) == ["yes", "no", "yes"]
    assert labels_of(["1", "0", "1"], ["no", "yes"], kind) == ["yes", "no", "yes"]
    assert labels_of([1.0, 0.0, 1.0], ["no", "yes"], kind) == ["yes", "no", "yes"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [["False", "True"], ["true", "false"]])
def test_truth_values_are_labels_of_that_name(labels_of, kind, names):
    found = labels_of([True, False, True], names, kind)
    assert [name.lower() for name in found] == ["true", "false", "true"]


@pytest.mark.parametrize("kind", KINDS)
def test_truth_values_are_no_numbers(labels_of, kind):
    with pytest.raises(DataError, match=r"row 1: column 'label' is '?True'?, which is no label .*0 \(no\), 1 \(yes\)"):
        labels_of([True, False], ["no", "yes"], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_no_name_is_refused(labels_of, kind):
    with pytest.raises(DataError, match=r"row 2: column 'label' is '?0'?, which is .*'5', by name only because names"):
        labels_of([1, 0], STARS, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_label_is_refused_though_pandas_made_floats_of_the_others(labels_of, kind):
    with pytest.raises(DataError, match=r"row 2: column 'label' is missing"):
        labels_of([1, None, 2], STARS, kind)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "csv.gz"])
@pytest.mark.parametrize(
    "text", ["2012", "2012-01-01", "2012-01-01T00:00:00Z", "1e5", "true", "null", "NA", "-1", "[1]"]
)
def test_texts_stay_texts(tmp_path, bert_folder, kind, text):
    for split in ("train", "validation"):
        content = pd.DataFrame([{"text": text, "label": "no"}, {"text": text, "label": "yes"}])
        if "csv" in kind or kind == "tsv":
            content.to_csv(tmp_path / f"{split}.{kind}", index=False, sep="\t" if kind == "tsv" else ",")
        else:
            content.to_json(tmp_path / f"{split}.{kind}", orient="records", lines=kind == "jsonl")
    data = TextClassificationDataModule(bert_folder, ["no", "yes"], data_dir=str(tmp_path), max_length=8)
    assert data.load_split("train")["text"][:] == [text, text]
    data.setup("fit")


def test_values_of_two_types_in_one_column_stay_what_they_are(tmp_path, bert_folder, labels_of):
    rows = [
        *({"text": "a", "label": 1} for _ in range(11_000)),
        {"text": "a", "label": "no"},
        {"text": "a", "label": "1"},
    ]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TextClassificationDataModule(bert_folder, ["no", "yes"], data_dir=str(tmp_path), max_length=8)
    assert data.load_split("train")["label"][-3:] == [1, "no", "1"]
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": 2012, "label": 1}\n')
    with pytest.raises(DataError, match=r"train\.jsonl', row 2: column 'text' is 2012, not a text"):
        data.setup("fit")


@pytest.mark.parametrize("names", [["1 star", "2 stars", "3 stars"], ["3", "2", "1"]])
def test_numbered_classes_of_a_data_set_are_no_names(bert_folder, monkeypatch, names):
    types = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = Dataset.from_list([{"text": "a film", "label": label} for label in (0, 2)], features=types)
    monkeypatch.setattr(
        "papa_lightning.datamodules.reading.files.load_dataset",
        lambda *a, **k: DatasetDict(train=rows, validation=rows),
    )
    data = TextClassificationDataModule(bert_folder, ["1", "2", "3"], hub_path="me/mine", max_length=8)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    expected = ["1", "3"] if names[0] == "1 star" else ["3", "1"]
    assert [data.label_names[label] for label in batch["labels"]] == expected
    data = TextClassificationDataModule(bert_folder, ["7", "8"], hub_path="me/mine", max_length=8)
    with pytest.raises(DataError, match=r"label_names is \['7', '8'\], but the data set has 3 classes of other names"):
        data.setup("fit")


def test_classes_of_a_parquet_file_keep_their_names(tmp_path, bert_folder):
    types = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    rows = Dataset.from_list([{"text": "a film", "label": label} for label in (0, 1)], features=types)
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    data = TextClassificationDataModule(bert_folder, ["no", "yes"], data_dir=str(tmp_path), max_length=8)
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["labels"].tolist() == [1, 0]


def test_a_categorical_column_of_pandas_is_text(tmp_path, bert_folder):
    frame = pd.DataFrame({"text": ["a", "film"], "label": pd.Categorical(["yes", "no"])})
    for split in ("train", "validation"):
        frame.to_parquet(tmp_path / f"{split}.parquet")
    data = TextClassificationDataModule(bert_folder, ["no", "yes"], data_dir=str(tmp_path), max_length=8)
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([False, True], r"label_names holds False, .*put words that YAML reads as truth values .*into quotes"),
        (["1", "1.0"], r"label_names is \['1', '1\.0'\], which holds a number in two forms"),
        ([1.5, 2.5], r"label_names holds 1\.5, but must hold names: put numbers"),
    ],
)
def test_names_that_are_none(names, message):
    with pytest.raises(PapaError, match=message):
        TextClassificationDataModule("some-tokenizer", names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", ["idx", "id"])
def test_numbers_of_rows(tmp_path, bert_folder, kind, column):
    def ids(values):
        for split in ("train", "validation"):
            rows = [{"text": "a film", "label": 1} | ({} if value is None else {column: value}) for value in values]
            write(tmp_path / f"{split}.{kind}", rows)
        data = TextClassificationDataModule(bert_folder, ["no", "yes"], data_dir=str(tmp_path), max_length=8)
        data.setup("fit")
        return next(iter(data.val_dataloader()))["example_id"].tolist()

    assert ids([5, 6, 8]) == [5, 6, 8]
    assert ids(["a", "7", "b"]) == [0, 1, 2]
    assert ids([None, None, None]) == [0, 1, 2]
    assert ids([0.5, 1.0, 2.0]) == [0, 1, 2]
    with pytest.warns(UserWarning, match=rf"row 2: column '{column}' is missing, though other rows have whole numb"):
        assert ids([5, None, 7]) == [0, 1, 2]


def test_a_table_with_a_missing_number(tmp_path, bert_folder):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("idx,text,label\n5,a,1\n,b,0\n7,c,1\n")
    data = TextClassificationDataModule(bert_folder, ["no", "yes"], data_dir=str(tmp_path), max_length=8)
    with pytest.warns(UserWarning, match=r"train\.csv', row 2: column 'idx' is missing, though other rows"):
        data.setup("fit")
    assert next(iter(data.val_dataloader()))["example_id"].tolist() == [0, 1, 2]


def test_compressed_files_that_are_none(tmp_path, bert_folder):
    (tmp_path / "train.csv.gz").write_text("text,label\na,1\n")
    data = TextClassificationDataModule(bert_folder, ["no", "yes"], data_dir=str(tmp_path), max_length=8)
    with pytest.raises(DataError, match=r"train\.csv\.gz' cannot be read as \.csv: Not a gzipped file"):
        data.setup("fit")
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"text,label\na,1\n" * 50)[:-9])
    with pytest.raises(DataError, match=r"train\.csv\.gz' cannot be read as \.csv: Compressed file ended"):
        data.setup("fit")
