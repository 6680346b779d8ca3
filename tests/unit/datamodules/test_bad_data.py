"""Data and arguments that are not what a task expects: what is said, and where the fault is."""

import warnings

import pytest
from datasets import Dataset, DatasetDict

from papa_lightning.datamodules import MRPCDataModule, SST2DataModule
from papa_lightning.errors import DataError, PapaError


def test_truncation_is_reported_once_for_all_splits(sst2, task_dir, write_jsonl):
    rows = [{"sentence": " ".join(["w1"] * count), "label": 0} for count in (2, 3, 40, 5)]
    for split in ("train", "validation"):
        write_jsonl(task_dir / f"{split}.jsonl", rows[: 4 if split == "train" else 1])
    data = sst2()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for stage in ("fit", "fit", "validate"):
            data.setup(stage)
    (message,) = [str(warning.message) for warning in caught if "examples" in str(warning.message)]
    assert message == (
        "sst2: 1 of 5 examples (20.0%) do not fit max_length=16 in layout='segment', preset='default' and were cut "
        "(train.jsonl 1, first in row 3; validation.jsonl 0): raise max_length to keep them."
    )


def test_nothing_is_said_where_everything_fits(sst2):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sst2().setup("fit")


def test_hub_that_cannot_be_reached(bert_folder, monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub.")

    monkeypatch.setattr("papa_lightning.datamodules.reading.files.load_dataset", load)
    with pytest.raises(
        DataError, match=r"'nyu-mll/glue' \(sst2\) cannot be loaded from the hub: Couldn't reach the hub\. .*data_dir"
    ):
        SST2DataModule(bert_folder).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 3}, "max_length is 3, but must be a whole number, at least 4"),
        ({"max_length": True}, "max_length is True, but must be a whole number"),
        ({"max_length": 64.0}, r"max_length is 64\.0, but must be a whole number"),
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number, at least 1"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0, but must be"),
        ({"num_workers": -1}, "num_workers is -1, but must be a whole number, at least 0"),
        ({"num_proc": 0}, "num_proc is 0, but must be"),
        ({"padding": "batch"}, "padding is 'batch', but must be one of 'max_length', 'longest'"),
        ({"max_train_examples": 0}, "max_train_examples is 0, but must be"),
        ({"max_eval_examples": -5}, "max_eval_examples is -5, but must be"),
        ({"layout": "aligned"}, "layout is 'aligned', but must be one of 'segment', 'plain'"),
        ({"preset": "paper"}, "preset is 'paper', but must be one of 'default', 'reference'"),
        ({"tokenizer": " "}, "tokenizer is ' ', but must be a name or the path of a folder"),
        ({"tokenizer": None}, "tokenizer is None, but must be a name"),
        ({"data_dir": 3}, "data_dir is 3, but must be a name or the path of a folder"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(PapaError, match=message):
        SST2DataModule(**({"tokenizer": "bert-base-uncased"} | arguments))


def test_pairs_need_more_slots():
    with pytest.raises(PapaError, match="max_length is 6, but must be a whole number, at least 7"):
        MRPCDataModule("bert-base-uncased", max_length=6)


def test_missing_folder_is_an_error_of_setup(sst2, tmp_path):
    with pytest.raises(DataError, match=r"data_dir is '.*nowhere', which does not exist"):
        sst2(data_dir=str(tmp_path / "nowhere")).setup("fit")


def test_wrongly_named_file_is_listed(sst2, task_dir):
    (task_dir / "train.jsonl").rename(task_dir / "training.jsonl")
    with pytest.raises(DataError, match=r"no file for the split 'train'; it holds: training\.jsonl, validation\.jsonl"):
        sst2().prepare_data()


def test_wrong_column_names_file_and_columns(sst2, task_dir, write_jsonl):
    write_jsonl(task_dir / "train.jsonl", [{"text": "a film", "label": 1}])
    with pytest.raises(DataError, match=r"train\.jsonl' has no column 'sentence'; its columns are 'text', 'label'"):
        sst2().setup("fit")


def test_training_rows_need_a_label_column(sst2, task_dir, write_jsonl):
    write_jsonl(task_dir / "train.jsonl", [{"sentence": "a film"}])
    with pytest.raises(DataError, match=r"train\.jsonl' has no column 'label'; its columns are 'sentence'"):
        sst2().setup("fit")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"label": 7},
            r"train\.jsonl', row 1502: column 'label' is 7, which is no label of this task: use one of 0 \(neg",
        ),
        ({"label": None}, r"train\.jsonl', row 1502: column 'label' is missing"),
        ({"sentence": " "}, r"train\.jsonl', row 1502: column 'sentence' is empty"),
        ({"sentence": None}, r"train\.jsonl', row 1502: column 'sentence' is missing"),
    ],
)
def test_bad_row_names_file_row_and_column(sst2, task_dir, write_jsonl, sentences, bad, message):
    rows = sentences(1600)  # more than one block of rows
    rows[1501] |= bad
    write_jsonl(task_dir / "train.jsonl", rows)
    with pytest.raises(DataError, match=message):
        sst2().setup("fit")


def test_column_of_two_types(sst2, task_dir, write_jsonl):
    write_jsonl(task_dir / "train.jsonl", [{"sentence": "a", "label": 1}, {"sentence": ["b"], "label": 1}])
    with pytest.raises(DataError, match=r"train\.jsonl'.*sentence"):
        sst2().setup("fit")


def test_labels_in_some_splits_only_are_named_once(sst2, task_dir, write_jsonl):
    rows = [{"sentence": "a film", "label": 1}] * 3
    write_jsonl(task_dir / "train.jsonl", rows)
    write_jsonl(task_dir / "validation.jsonl", [*rows, {"sentence": "w1", "label": "negative"}])
    data = sst2()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for stage in ("fit", "fit", "validate"):
            data.setup(stage)
    (message,) = [str(warning.message) for warning in caught]
    assert message == (
        "sst2: labels of column 'label' that occur in some splits only: validation.jsonl has 'negative' (row 4), "
        "which train.jsonl lacks. What no training row shows cannot be learnt, and what only training rows show is not "
        "scored."
    )
    write_jsonl(task_dir / "train.jsonl", [{"sentence": "w1", "label": 0}])
    write_jsonl(task_dir / "validation.jsonl", rows)
    with pytest.warns(
        UserWarning, match=r"validation.jsonl has 'positive' \(row 1\), which train.jsonl lacks; train.json"
    ):
        sst2().setup("fit")


def test_rows_of_one_label_are_named(sst2, task_dir, write_jsonl):
    for split in ("train", "validation"):
        rows = [{"sentence": f"w{number}", "label": number // 4} for number in range(8)]  # sorted by label
        write_jsonl(task_dir / f"{split}.jsonl", rows)
    with pytest.warns(UserWarning, match=r"sst2: all rows.* have the label 'negative' of column 'label', so nothing"):
        sst2(max_train_examples=3, max_eval_examples=3).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sst2().setup("fit")


def test_split_without_rows(bert_folder, monkeypatch, sentences):
    full = Dataset.from_list(sentences(2))
    splits = DatasetDict({"train": full, "validation": full.select([])})
    monkeypatch.setattr("papa_lightning.datamodules.reading.files.load_dataset", lambda *args, **kwargs: splits)
    with pytest.raises(DataError, match=r"hub nyu-mll/glue, sst2, split 'validation' holds no rows"):
        SST2DataModule(bert_folder).setup("fit")
