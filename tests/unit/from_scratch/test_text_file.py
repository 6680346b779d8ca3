"""Text files: splits, vocabulary and blocks; and the digits."""

import builtins

import numpy as np
import pytest
import torch

from papa_lightning import DigitsDataModule, TextFileDataModule
from papa_lightning.errors import DataError, PapaError

TEXT = "".join(chr(97 + number * number % 23) for number in range(380)) + "€" * 20  # € is in the test part alone


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def blocks(data, part):
    data.setup()
    loader = {"train": data.train_dataloader, "validation": data.val_dataloader, "test": data.test_dataloader}[part]()
    rows = [row for batch in loader for row in zip(*batch.values(), strict=True)]
    rows.sort(key=lambda row: int(row[-1]))  # by example_id: the training batches are shuffled
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def decoded(data, ids):
    return "".join(data.label_names[number] for number in ids.flatten().tolist())


def test_parts_are_the_first_90_the_next_5_and_the_last_5_percent(file):
    data = TextFileDataModule(file, max_length=6, batch_size=2)
    for part, first, last in (("train", 0, 360), ("validation", 360, 380), ("test", 380, 400)):
        ids, mask, following, numbers = blocks(data, part)
        count = (last - first - 1) // 6
        assert (ids.shape, numbers.tolist()) == ((count, 6), list(range(count)))
        assert mask.all()
        if part != "test":
            assert decoded(data, ids) == TEXT[first : first + 6 * count]
            assert decoded(data, following) == TEXT[first + 1 : first + 6 * count + 1]


def test_characters_that_only_other_parts_have_are_unknown(file):
    data = TextFileDataModule(file, max_length=6)
    ids, _, following, _ = blocks(data, "test")
    assert not ids.any()
    assert not following.any()
    assert data.label_names == ("\N{REPLACEMENT CHARACTER}", *sorted(set(TEXT[:360])))
    assert data.num_labels == len(set(TEXT[:360])) + 1
    assert data.tokens.numbers.dtype == np.uint8
    assert data.metrics[0] == "bits_per_character"


def test_bytes_are_mapped_into_memory(file):
    data = TextFileDataModule(file, unit="bytes", max_length=6)
    assert isinstance(data.tokens.numbers, np.memmap)
    ids, _, following, _ = blocks(data, "test")
    raw = TEXT.encode()
    start = int(len(raw) * 0.95)
    assert bytes(ids.flatten().tolist()) == raw[start : start + ids.numel()]
    assert bytes(following.flatten().tolist()) == raw[start + 1 : start + 1 + ids.numel()]
    assert (data.num_labels, data.label_names, data.metrics[0]) == (256, None, "bits_per_byte")


def test_files_are_joined_in_their_order(tmp_path):
    paths = []
    for name, text in (("b", TEXT[:100]), ("a", TEXT[100:])):
        paths.append(str(tmp_path / name))
        (tmp_path / name).write_text(text, encoding="utf-8")
    whole, data = TextFileDataModule(paths, max_length=6), TextFileDataModule(paths, unit="bytes", max_length=6)
    assert decoded(whole, blocks(whole, "train")[0]) == TEXT[:354]
    assert bytes(data.tokens.numbers) == TEXT.encode()


def test_limits_take_blocks_from_the_start(file):
    data = TextFileDataModule(file, max_length=6, max_train_blocks=3, max_eval_blocks=1)
    assert decoded(data, blocks(data, "train")[0]) == TEXT[:18]
    assert len(blocks(data, "validation")[0]) == 1
    assert data.num_labels == len(set(TEXT[:360])) + 1  # of the whole training part


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 20}, "the validation part of .* has 20 characters, too few for a block of max_length=20"),
        ({"unit": "words"}, "unit is 'words', but must be one of 'characters', 'bytes'"),
        ({"max_train_blocks": 0}, "max_train_blocks is 0"),
        ({"files": []}, "files is empty"),
        ({"files": "no-such-file"}, "files has 'no-such-file', but there is no such file"),
    ],
)
def test_bad_arguments_of_text(file, arguments, message):
    with pytest.raises(PapaError, match=message):
        TextFileDataModule(**{"files": file, "max_length": 6, **arguments}).setup("fit")


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "binary").write_bytes(b"abc\xff" * 100)
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match=r"no UTF-8 text \(byte 3\): convert it, or pass unit='bytes'"):
        TextFileDataModule(str(tmp_path / "binary"), max_length=2).setup("fit")
    with pytest.raises(DataError, match="which is empty"):
        TextFileDataModule(str(tmp_path / "empty"), max_length=2).setup("fit")
    with pytest.raises(DataError, match="the train data are not set up"):
        TextFileDataModule(str(tmp_path / "empty")).train_dataloader()


def test_digits_are_all_there_once_and_alike_in_classes():
    from sklearn.datasets import load_digits

    parts = {part: blocks(DigitsDataModule(), part) for part in ("train", "validation", "test")}
    assert {part: len(columns[0]) for part, columns in parts.items()} == {"train": 1257, "validation": 270, "test": 270}
    images, classes, _ = (
        torch.cat(column) for column in zip(*((c[0], c[1], c[2]) for c in parts.values()), strict=True)
    )
    order = torch.cat([columns[2] for columns in parts.values()]).argsort()
    assert torch.equal((images[order, 0] + 1) * 8, torch.from_numpy(load_digits().images).float())
    assert torch.equal(classes[order], torch.from_numpy(load_digits().target))
    for _, labels, *_ in parts.values():
        counts = labels.bincount(minlength=10) / len(labels)
        assert (counts - 0.1).abs().max() < 0.01


def test_digits_without_scikit_learn(monkeypatch):
    found = builtins.__import__

    def missing(name, *args):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return found(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match=r"needs scikit-learn, .* pip install 'papa-lightning\[images\]'"):
        DigitsDataModule().setup("fit")
