"""MRPC and MNLI: pairs of texts, and two validation dataloaders."""

import warnings

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from papa_lightning.datamodules import MNLIDataModule, MRPCDataModule
from papa_lightning.errors import DataError


def mnli_rows(count, first=0):
    return [
        {"premise": f"w{row} good film", "hypothesis": f"w{row} film", "label": row % 3, "idx": first + row}
        for row in range(count)
    ]


@pytest.fixture
def mnli(tmp_path, bert_folder, write_jsonl):
    for name, count in (("train", 9), ("validation_matched", 6), ("validation_mismatched", 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", mnli_rows(count, first=len(name) * 100))
    return lambda **kwargs: MNLIDataModule(
        bert_folder, **({"data_dir": str(tmp_path), "max_length": 16, "batch_size": 4} | kwargs)
    )


def ids(loader):
    return [number for batch in loader for number in batch["example_id"].tolist()]


def test_mrpc_rows(tmp_path, bert_folder, write_jsonl):
    rows = [{"sentence1": "a film", "sentence2": "bad", "label": n % 2, "idx": 7 + 2 * n} for n in range(4)]
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    data = MRPCDataModule(bert_folder, data_dir=str(tmp_path), max_length=10)
    assert (data.num_labels, data.metrics, data.validation_names) == (2, ("f1", "accuracy"), ())
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["example_id"].tolist() == [7, 9, 11, 13]
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    assert data.tokenizer.decode(batch["input_ids"][0]) == "[CLS] a film [PAD] [PAD] [SEP] bad [PAD] [PAD] [SEP]"


def test_mnli_has_two_validation_loaders_in_the_order_of_their_names(mnli):
    data = mnli()
    assert data.validation_names == ("matched", "mismatched")
    data.setup("fit")
    matched, mismatched = data.val_dataloader()
    assert ids(matched) == [1800, 1801, 1802, 1803, 1804, 1805]
    assert ids(mismatched) == [2100, 2101, 2102]
    with pytest.warns(UserWarning, match=r"mnli \(data_dir .*\) has no test split with labels"):
        data.setup("test")
    assert [ids(loader) for loader in data.test_dataloader()] == [ids(matched), ids(mismatched)]
    data.setup("predict")
    assert len(data.predict_dataloader()) == 2


def test_mnli_test_splits(mnli, tmp_path, write_jsonl):
    for name in ("test_matched", "test_mismatched"):
        write_jsonl(tmp_path / f"{name}.jsonl", [row | {"label": -1} for row in mnli_rows(2)])
    data = mnli()
    with pytest.warns(UserWarning, match="has no test split with labels"):
        data.setup()
    assert [len(loader.dataset) for loader in data.test_dataloader()] == [6, 3]
    assert [len(loader.dataset) for loader in data.predict_dataloader()] == [2, 2]
    assert all("labels" not in batch for loader in data.predict_dataloader() for batch in loader)


def test_mnli_without_mismatched_rows_warns_once(mnli, tmp_path):
    (tmp_path / "validation_mismatched.jsonl").unlink()
    data = mnli()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for stage in ("fit", "fit", "validate"):
            data.setup(stage)
    (message,) = [str(warning.message) for warning in caught]
    assert message == (
        f"mnli (data_dir {tmp_path.name}) has no split 'validation_mismatched': validating on 'validation_matched' "
        "only."
    )
    (loader,) = data.val_dataloader()
    assert len(ids(loader)) == 6


def test_mnli_needs_matched_rows(mnli, tmp_path):
    (tmp_path / "validation_matched.jsonl").unlink()
    with pytest.raises(DataError, match="no file for the split 'validation_matched'"):
        mnli().setup("fit")


def test_hub_labels_are_understood_by_name(bert_folder, monkeypatch):
    """Another data set numbers the same classes otherwise; its names say so."""
    names = ["contradiction", "neutral", "entailment"]
    features = Features(
        {
            "premise": Value("string"),
            "hypothesis": Value("string"),
            "label": ClassLabel(names=names),
            "idx": Value("int32"),
        }
    )
    rows = Dataset.from_list(mnli_rows(3), features=features)
    splits = DatasetDict({"train": rows, "validation_matched": rows, "validation_mismatched": rows})
    monkeypatch.setattr("papa_lightning.datamodules.reading.files.load_dataset", lambda *args, **kwargs: splits)
    data = MNLIDataModule(bert_folder, max_length=16)
    data.setup("fit")
    assert next(iter(data.val_dataloader()[1]))["labels"].tolist() == [2, 1, 0]


def test_pairs_in_the_reference_preset_lose_the_type_of_the_second_segment(mnli):
    default, reference = mnli(), mnli(preset="reference")
    for data in (default, reference):
        data.setup("validate")
    one, other = (next(iter(data.val_dataloader()[0])) for data in (default, reference))
    assert one["input_ids"].equal(other["input_ids"])
    assert not one["token_type_ids"].equal(other["token_type_ids"])
