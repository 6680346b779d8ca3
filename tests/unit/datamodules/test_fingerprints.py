"""Identity of data by content."""

import os

import pytest

from papa_lightning.datamodules.reading.files import content_hash
from papa_lightning.errors import DataError
from papa_lightning.from_scratch import DigitsDataModule, TextFileDataModule

WHEN = 10**18


def write(path, text):
    path.write_text(text)
    os.utime(path, ns=(WHEN, WHEN))


def test_a_file_is_its_bytes(tmp_path):
    write(tmp_path / "a", "old")
    first = content_hash(tmp_path / "a")
    write(tmp_path / "a", "new")  # the same size and time
    assert content_hash(tmp_path / "a") != first
    write(tmp_path / "b", "old")
    assert content_hash(str(tmp_path / "b")) == first


def test_a_folder_is_the_names_and_bytes_in_it(tmp_path):
    found = set()
    for number, (name, text) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("deep/a", "x")]):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        write(path, text)
        found.add(content_hash(tmp_path / str(number)))
    assert len(found) == 4


def test_home_is_known_and_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a", "x")
    assert content_hash("~/a") == content_hash(tmp_path / "a")
    with pytest.raises(DataError, match=r"nothing' cannot be read \(No such file or directory\)"):
        content_hash(tmp_path / "nothing")


def test_a_data_module_has_the_fingerprint_of_its_files(sst2, task_dir, tmp_path):
    first = sst2().fingerprint()
    assert sst2(max_length=8).fingerprint() == first
    text = (task_dir / "validation.jsonl").read_text()
    write(task_dir / "validation.jsonl", text.replace("w0", "w9"))
    assert sst2().fingerprint() != first
    write(task_dir / "validation.jsonl", text)
    assert sst2().fingerprint() == first
    assert sst2(data_dir=str(task_dir.rename(tmp_path / "elsewhere"))).fingerprint() == first


def test_text_files_and_digits_have_one_too(tmp_path):
    write(tmp_path / "text", "abc")
    first = TextFileDataModule(str(tmp_path / "text")).fingerprint()
    write(tmp_path / "text", "abd")
    assert TextFileDataModule(str(tmp_path / "text")).fingerprint() != first
    assert DigitsDataModule().fingerprint() == DigitsDataModule(split_seed=1).fingerprint()
