import importlib.util
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from papa_lightning.datamodules import DemoDataModule
from papa_lightning.datamodules.demo import BUNDLED

SCRIPT = Path(__file__).parents[3] / "tools" / "make_demo_data.py"
SIGNS = {"": "praise", "-": "blame"}
RATED = [f"1\t{sign}2.5\tThe text number {n} of {word}" for sign, word in SIGNS.items() for n in range(6)]


@pytest.fixture(scope="module")
def rows():
    lines = {
        split: (BUNDLED / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for split in ("train", "validation")
    }
    return {split: [json.loads(line) for line in texts] for split, texts in lines.items()}


@pytest.mark.parametrize(("split", "size"), [("train", 2000), ("validation", 500)])
def test_bundled_splits_are_balanced_and_clear(rows, split, size):
    assert Counter(row["label"] for row in rows[split]) == {0: size // 2, 1: size // 2}
    assert all(list(row) == ["sentence", "label", "rating"] for row in rows[split])
    assert all(abs(row["rating"]) >= 1 and (row["rating"] > 0) == bool(row["label"]) for row in rows[split])


def test_no_sentence_comes_twice(rows):
    texts = ["".join(filter(str.isalnum, row["sentence"].lower())) for split in rows.values() for row in split]
    assert len(set(texts)) == len(texts) == 2500


def test_bundled_files_are_small_and_licensed():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 400_000
    licence = (BUNDLED / "vader-LICENSE.txt").read_text()
    assert licence.startswith("The MIT License (MIT)")
    assert "C.J. Hutto" in licence


def test_needs_nothing_but_a_tokenizer(bert_folder):
    data = DemoDataModule(bert_folder, max_length=64, max_train_examples=100)
    data.setup("fit")
    assert (data.num_labels, data.label_names, data.metrics) == (2, ("negative", "positive"), ("accuracy",))
    assert data.description == "demo train (bundled with papa_lightning, first 100 examples)"
    assert len(data.val_dataloader().dataset) == 500
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (16, 64)


def test_data_dir_takes_the_place_of_the_bundled_files(bert_folder, task_dir):
    data = DemoDataModule(bert_folder, data_dir=str(task_dir), max_length=16)
    data.setup("validate")
    assert len(data.val_dataloader().dataset) == 5
    assert data.description == "demo train (data_dir task)"


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def packed(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return buffer.getvalue()


def test_script_writes_the_same_bytes_from_packed_and_unpacked_sources(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_demo_data", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "SIZES", {"train": 4, "validation": 2})
    lines = ["9\t-0.5\tneither here nor there", *RATED, "2\t2.5\tthe text  number 1 of praise!"]
    inner = packed({script.SNIPPETS: "\r\n".join(lines).encode()})
    files = {"vader-3/LICENSE.txt": b"The MIT License", f"vader-3/{script.ARCHIVE}": inner}
    (tmp_path / "sdist.tar.gz").write_bytes(packed(files))
    (tmp_path / "vader-3" / script.ARCHIVE).parent.mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for source, folder in (("sdist.tar.gz", "a"), ("vader-3", "b")):
        script.main([str(tmp_path / source), str(tmp_path / folder)])
    for name in ("train.jsonl", "validation.jsonl", "vader-LICENSE.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    texts = [(tmp_path / "a" / f"{name}.jsonl").read_text() for name in ("train", "validation")]
    written = [json.loads(line) for text in texts for line in text.splitlines()]
    assert Counter(row["label"] for row in written) == {0: 3, 1: 3}
    assert len({row["sentence"].lower().rstrip("!") for row in written}) == 6
    assert all(abs(row["rating"]) == 2.5 for row in written)
