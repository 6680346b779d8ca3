"""The base of all data modules, through the sentence tasks and a pair task defined here."""

import copy
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from lightning import LightningModule, Trainer

from papa_lightning.datamodules import CoLADataModule, SST2DataModule, TextDataModule
from papa_lightning.errors import DataError, PapaError


class PairDataModule(TextDataModule):
    """A task of two texts: nothing but its facts."""

    task_name = "pairs"
    text_columns = ("premise", "hypothesis")
    label_names = ("entailment", "neutral", "contradiction")
    metrics = ("accuracy", "f1")


class CountingDataModule(SST2DataModule):
    """Counts the calls that check and tokenise rows."""

    encoded = 0

    def encode(self, columns, rows, where):
        type(self).encoded += 1
        return super().encode(columns, rows, where)


class ShapeModule(LightningModule):
    """Runs every hook of a Trainer and keeps the ids of the rows it saw."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 2)
        self.seen = {"train": [], "validation": [], "test": [], "predict": []}

    def step(self, stage, batch):
        self.seen[stage] += batch["example_id"].tolist()
        return self.layer(batch["attention_mask"].float()).sum()

    def training_step(self, batch, _):
        return self.step("train", batch)

    def validation_step(self, batch, _):
        self.step("validation", batch)

    def test_step(self, batch, batch_idx):
        self.step("test", batch)

    def predict_step(self, batch, _):
        return self.step("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def small_trainer(tmp_path, **kwargs):
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(default_root_dir=tmp_path, accelerator="cpu", devices=1, max_epochs=1, **silent, **kwargs)


def test_facts_are_known_before_setup(bert_folder):
    data = CoLADataModule(tokenizer="a-name-that-is-not-loaded-yet")
    assert (data.num_labels, data.label_names) == (2, ("unacceptable", "acceptable"))
    assert data.metrics == ("matthews_corrcoef",)
    assert (data.max_length, data.layout, data.preset) == (64, "segment", "default")
    assert data.description == "cola train (hub nyu-mll/glue, cola)"
    assert SST2DataModule("x", revision="abc").description == "sst2 train (hub nyu-mll/glue, sst2, revision abc)"


def test_description_holds_no_path(sst2, task_dir):
    assert sst2(max_train_examples=3).description == "sst2 train (data_dir task, first 3 examples)"
    assert sst2(data_dir=str(task_dir) + "/../task/").description == "sst2 train (data_dir task)"


def test_hyperparameters_are_saved_as_primitives(sst2, task_dir):
    data = sst2(data_dir=task_dir)  # a path object
    assert data.hparams["data_dir"] == str(task_dir)
    assert {type(value) for value in data.hparams.values()} <= {str, int, type(None)}
    assert json.loads(json.dumps(dict(data.hparams)))["max_length"] == 16


def test_batches_are_rows_of_one_length(sst2):
    data = sst2(eval_batch_size=5)
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "input_ids": ((5, 16), torch.int64),
        "attention_mask": ((5, 16), torch.int64),
        "token_type_ids": ((5, 16), torch.int64),
        "labels": ((5,), torch.int64),
        "example_id": ((5,), torch.int64),
    }
    assert batch["labels"].tolist() == [0, 1, 0, 1, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1] + [0] * 12 + [1]] * 5
    assert data.tokenizer.decode(batch["input_ids"][1][[0, 1, 2, 15]]) == "[CLS] w1 good [SEP]"
    assert [len(batch["labels"]) for batch in data.train_dataloader()] == [4, 4, 4]


def test_tokenizer_without_token_types(sst2, task_dir, roberta_folder):
    data = SST2DataModule(roberta_folder, data_dir=str(task_dir), max_length=16)
    data.setup("validate")
    assert "token_type_ids" not in next(iter(data.val_dataloader()))


def test_plain_layout_pads_at_the_end(sst2):
    data = sst2(layout="plain")
    data.setup("validate")
    assert next(iter(data.val_dataloader()))["attention_mask"][0].tolist() == [1] * 4 + [0] * 12


def test_only_training_rows_are_shuffled(sst2):
    data = sst2(batch_size=12)
    data.setup("fit")
    torch.manual_seed(0)
    train = next(iter(data.train_dataloader()))["example_id"].tolist()
    assert train != sorted(train)
    assert sorted(train) == list(range(12))
    assert next(iter(data.val_dataloader()))["example_id"].tolist() == list(range(5))


def test_example_id_is_the_idx_column_if_it_holds_numbers(sst2, task_dir, write_jsonl, sentences):
    write_jsonl(task_dir / "train.jsonl", [row | {"idx": 100 + n} for n, row in enumerate(sentences(4))])
    write_jsonl(task_dir / "validation.jsonl", [row | {"idx": f"doc-{n}"} for n, row in enumerate(sentences(4))])
    data = sst2()
    data.setup("fit")
    assert sorted(next(iter(data.train_dataloader()))["example_id"].tolist()) == [100, 101, 102, 103]
    assert next(iter(data.val_dataloader()))["example_id"].tolist() == [0, 1, 2, 3]


def test_limits_take_the_first_rows(sst2):
    data = sst2(max_train_examples=3, max_eval_examples=2)
    data.setup("fit")
    assert sorted(next(iter(data.train_dataloader()))["example_id"].tolist()) == [0, 1, 2]
    assert next(iter(data.val_dataloader()))["example_id"].tolist() == [0, 1]


def test_labels_may_be_names(sst2, task_dir, write_jsonl):
    rows = [{"sentence": "a film", "label": name} for name in ("positive", "negative", "positive")]
    write_jsonl(task_dir / "validation.jsonl", rows)
    data = sst2()
    data.setup("validate")
    assert next(iter(data.val_dataloader()))["labels"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("preset", ["default", "reference"])
def test_pair_task_is_a_subclass_with_facts_only(tmp_path, bert_folder, write_jsonl, preset):
    rows = [{"premise": "w0 w1", "hypothesis": "w2", "label": label} for label in (0, 2, "neutral")]
    for split in ("train", "validation"):
        write_jsonl(
            tmp_path / f"{split}.jsonl",
            [row | {"label": ["entailment", "neutral"][n % 2]} for n, row in enumerate(rows)],
        )
    data = PairDataModule(bert_folder, data_dir=str(tmp_path), max_length=10, preset=preset)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert data.num_labels == 3
    tokens = data.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert " ".join(tokens) == "[CLS] w0 w1 [PAD] [PAD] [SEP] w2 [PAD] [PAD] [SEP]"
    default_types = [0, 0, 0, 0, 0, 0, 1, 0, 0, 1]
    reference_types = [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert batch["token_type_ids"][0].tolist() == (default_types if preset == "default" else reference_types)
    assert batch["labels"].tolist() == [0, 1, 0]


def test_task_without_a_hub_data_set_wants_a_folder(bert_folder):
    with pytest.raises(DataError, match="data_dir is None, but pairs is on no hub: pass a folder"):
        PairDataModule(bert_folder).setup("fit")


def test_setup_is_idempotent_and_loads_what_the_stage_needs(sst2):
    data = sst2()
    data.setup("validate")
    with pytest.raises(PapaError, match=r"the train data are not set up: call setup\(\)"):
        data.train_dataloader()
    rows, kept = data.val_dataloader().dataset, data._rows["validation"]
    data.setup("fit")
    data.setup("fit")
    assert data.val_dataloader().dataset.cache_files == rows.cache_files
    assert data._rows["validation"] is kept
    with pytest.raises(PapaError, match="stage is 'train', but must be one of 'fit'"):
        data.setup("train")


def test_prepare_data_keeps_no_state_and_fills_the_cache(sst2):
    data = sst2(CountingDataModule, preset="reference")
    before = dict(vars(data))
    data.prepare_data()
    assert set(vars(data)) == set(before)
    assert data._rows == {}
    assert CountingDataModule.encoded == 2
    sst2(CountingDataModule, preset="reference").setup("fit")  # what another process does
    assert CountingDataModule.encoded == 2
    sst2(CountingDataModule, preset="default").setup("fit")
    assert CountingDataModule.encoded == 4


def test_changed_file_is_read_again(sst2, task_dir, write_jsonl, sentences):
    sst2().setup("fit")
    write_jsonl(task_dir / "validation.jsonl", sentences(9))
    data = sst2(eval_batch_size=16)
    data.setup("fit")
    assert len(next(iter(data.val_dataloader()))["labels"]) == 9


def test_test_split_with_labels_is_used(sst2, task_dir, write_jsonl, sentences):
    write_jsonl(task_dir / "test.jsonl", sentences(3))
    data = sst2()
    data.setup("test")
    assert next(iter(data.test_dataloader()))["labels"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("labels", [{"label": -1}, {"label": None}, {}])
def test_test_split_without_labels_serves_prediction_only(sst2, task_dir, write_jsonl, labels):
    write_jsonl(task_dir / "test.jsonl", [{"sentence": "a film"} | labels] * 3)
    data = sst2(batch_size=8)
    with pytest.warns(UserWarning, match=r"sst2 \(data_dir task\) has no test split with labels: testing on the val"):
        data.setup("test")
    assert len(next(iter(data.test_dataloader()))["labels"]) == 5
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch["input_ids"].shape == (3, 16)
    assert "labels" not in batch


def test_predicting_without_a_test_split_takes_the_validation_split(sst2):
    data = sst2(batch_size=8)
    data.setup("predict")
    assert next(iter(data.predict_dataloader()))["example_id"].tolist() == [0, 1, 2, 3, 4]


def test_every_verb_of_the_trainer(sst2, task_dir, tmp_path):
    module, data = ShapeModule(), sst2()
    small_trainer(tmp_path, num_sanity_val_steps=0).fit(module, datamodule=data)
    assert sorted(module.seen["train"]) == list(range(12))
    assert module.seen["validation"] == [0, 1, 2, 3, 4]
    with pytest.warns(UserWarning, match="testing on the validation split"):
        small_trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert module.seen["test"] == [0, 1, 2, 3, 4]
    assert len(small_trainer(tmp_path).predict(module, datamodule=data)) == 2
    (task_dir / "train.jsonl").unlink()  # validating needs no training file
    small_trainer(tmp_path).validate(module, datamodule=sst2(), verbose=False)
    assert module.seen["validation"] == [0, 1, 2, 3, 4] * 2


def test_workers_give_the_same_rows(sst2):
    data = sst2(num_workers=1)
    data.setup("fit")
    loader = data.val_dataloader()
    assert loader.persistent_workers
    assert [number for batch in loader for number in batch["example_id"].tolist()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("mps", False)])
def test_memory_is_pinned_only_for_an_accelerator_that_profits(sst2, device, pinned):
    data = sst2()
    data.setup("validate")
    assert not data.val_dataloader().pin_memory
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    assert data.val_dataloader().pin_memory is pinned


def test_copies_work(sst2):
    data = sst2()
    data.setup("fit")
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert next(iter(other.val_dataloader()))["example_id"].tolist() == [0, 1, 2, 3]


def test_hub_data_set_with_hidden_test_labels(bert_folder, monkeypatch, sentences):
    asked = []

    def load(path, config, revision):
        asked.append((path, config, revision))
        rows = sentences(6)
        hidden = [row | {"label": -1} for row in rows]
        return DatasetDict(
            {name: Dataset.from_list(hidden if name == "test" else rows) for name in ("train", "validation", "test")}
        )

    monkeypatch.setattr("papa_lightning.datamodules.reading.files.load_dataset", load)
    data = CoLADataModule(bert_folder, max_length=16, revision="abc")
    data.prepare_data()
    with pytest.warns(
        UserWarning, match=r"cola \(hub nyu-mll/glue, cola, revision abc\) has no test split with labels"
    ):
        data.setup()
    assert set(asked) == {("nyu-mll/glue", "cola", "abc")}
    assert next(iter(data.test_dataloader()))["labels"].tolist() == [0, 1, 0, 1, 0, 1]
    assert "labels" not in next(iter(data.predict_dataloader()))


def test_several_processes_tokenise_the_same_rows(sst2, task_dir, write_jsonl, sentences, tmp_path):
    write_jsonl(task_dir / "train.jsonl", sentences(60))
    one, two = sst2(max_length=12), sst2(max_length=12, num_proc=2, max_train_examples=59)
    small_trainer(tmp_path, limit_train_batches=0, limit_val_batches=0).fit(ShapeModule(), datamodule=two)
    one.setup("fit")
    assert two._rows["train"].to_list() == one._rows["train"].to_list()[:59]
    rows = sentences(40)
    rows[33]["label"] = 9
    write_jsonl(task_dir / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"train\.jsonl', row 34: column 'label' is 9, which is no label"):
        sst2(num_proc=2).setup("fit")


def test_dynamic_padding_is_for_the_plain_layout(sst2, task_dir, write_jsonl):
    rows = [{"sentence": " ".join(["w1"] * count), "label": count % 2} for count in (3, 5, 1, 1, 2)]
    write_jsonl(task_dir / "validation.jsonl", rows)
    data = sst2(layout="plain", padding="longest", num_workers=1)
    data.setup("validate")
    assert [tuple(batch["input_ids"].shape) for batch in data.val_dataloader()] == [(4, 7), (1, 4)]
    with pytest.raises(
        DataError, match="padding is 'longest', but layout='segment' puts the last separator on the last"
    ):
        sst2(padding="longest")
