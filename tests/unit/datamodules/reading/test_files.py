import errno

import datasets
import pytest
from datasets import Dataset

from papa_lightning.datamodules.reading.files import find_split_files, missing_split, read_split
from papa_lightning.errors import DataError

SPLITS = ("train", "validation", "test")
ROW = {"sentence": "a film", "label": 1}


def test_files_are_found_by_exact_stem(tmp_path):
    for name in ("train.jsonl", "train_sentences.jsonl", "train.txt", "validation.csv", "README.md"):
        (tmp_path / name).write_text("x")
    found = {split: path.name for split, path in find_split_files(tmp_path, SPLITS).items()}
    assert found == {"train": "train.jsonl", "validation": "validation.csv"}


def test_missing_folder(tmp_path):
    with pytest.raises(
        DataError, match=r"data_dir is '.*nowhere', which does not exist: pass a folder that holds train"
    ):
        find_split_files(tmp_path / "nowhere", SPLITS)


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"data_dir is '.*train.jsonl', which is a file: pass a folder"):
        find_split_files(tmp_path / "train.jsonl", SPLITS)


def test_two_files_for_one_split(tmp_path):
    for name in ("train.jsonl", "train.csv"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"several files for the split 'train': train.csv, train.jsonl: keep one"):
        find_split_files(tmp_path, SPLITS)


def test_missing_split_lists_what_was_found(tmp_path):
    for name in ("training.jsonl", "dev.jsonl"):
        (tmp_path / name).write_text("x")
    message = str(missing_split(tmp_path, "train"))
    assert "no file for the split 'train'; it holds: dev.jsonl, training.jsonl" in message
    assert "train.jsonl, train.json, train.csv, train.tsv or train.parquet" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", '{"sentence": "null", "label": "1"}\n{"sentence": "two \\"words\\"", "label": "0"}\n'),
        ("train.csv", 'sentence,label\nnull,1\n"two ""words""",0\n'),
        ("train.tsv", 'sentence\tlabel\nnull\t1\ntwo "words"\t0\n'),
    ],
)
def test_text_comes_as_it_is(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    rows = read_split(tmp_path / name)
    assert rows.to_list() == [{"sentence": "null", "label": "1"}, {"sentence": 'two "words"', "label": "0"}]


def test_parquet(tmp_path):
    Dataset.from_list([ROW]).to_parquet(tmp_path / "train.parquet")
    assert read_split(tmp_path / "train.parquet").to_list() == [ROW]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_empty_file(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    path.touch()
    with pytest.raises(DataError, match=rf"train\.{suffix}' is an empty file: write at least one row"):
        read_split(path)


@pytest.mark.parametrize(("name", "content"), [("train.csv", "sentence,label\n"), ("train.jsonl", "\n\n")])
def test_file_without_rows(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}' holds no rows: write at least one row"):
        read_split(tmp_path / name)


def test_parquet_without_rows(tmp_path):
    Dataset.from_list([ROW]).select([]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet' holds no rows: write at least one row"):
        read_split(tmp_path / "train.parquet")


def test_broken_json_names_the_line(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"sentence": "a", "label": 1}\n{"sentence": "b", "lab\n')
    with pytest.raises(DataError, match=r"train\.jsonl' cannot be read as \.jsonl: line 2 is not JSON"):
        read_split(tmp_path / "train.jsonl")


def test_line_that_is_no_object(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"sentence": "a", "label": 1}\n3\n')
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        read_split(tmp_path / "train.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_wrong_encoding_names_the_line(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    path.write_bytes('{"sentence": "a"}\n{"sentence": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=rf"train\.{suffix}' is not in UTF-8: line 2, byte 15 .*Write the file again"):
        read_split(path)


def test_ragged_csv(tmp_path):
    (tmp_path / "train.csv").write_text("sentence,label\na,1\nb,1,2,3\n")
    with pytest.raises(DataError, match=r"cannot be read as \.csv: .*line 3"):
        read_split(tmp_path / "train.csv")


@pytest.mark.parametrize("full", [False, True])
def test_a_cache_that_cannot_be_written_is_no_fault_of_the_file(full, tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("text,label\nhello,1\n")
    (tmp_path / "file").touch()
    if full:

        def generated(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Dataset, "from_generator", generated)
    else:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(DataError, match=r"rows of '.*train.csv' cannot be stored .*: .*HF_DATASETS_CACHE") as refused:
        read_split(tmp_path / "train.csv")
    assert "Mend" not in str(refused.value)


def test_truncated_parquet(tmp_path):
    path = tmp_path / "train.parquet"
    Dataset.from_list([ROW] * 50).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"train\.parquet' cannot be read as \.parquet: .*Mend the file"):
        read_split(path)
