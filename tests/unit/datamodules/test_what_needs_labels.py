"""Whether rows must have labels hangs on what runs; and rows that are left out by their label."""

import json
from types import SimpleNamespace

import lightning as L
import pytest
from torch import nn
from transformers import BertConfig, BertModel

from papa_lightning.callbacks.calibration_run import CalibrationRun
from papa_lightning.datamodules import TextClassificationDataModule
from papa_lightning.errors import DataError
from papa_lightning.tasks import MaskedLanguageModelingTask


def make(bert_folder, folder, rows, **arguments):
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data_dir": str(folder), "max_length": 8, "batch_size": 4} | arguments
    return TextClassificationDataModule(bert_folder, ["no", "yes"], **given)


def attach(data, module=None, callbacks=(), verb="fit"):
    data.trainer = SimpleNamespace(
        lightning_module=module, callbacks=list(callbacks), state=SimpleNamespace(fn=verb), strategy=None
    )
    return data


@pytest.mark.parametrize("rows", [[{"text": "a film"}], [{"text": "a film", "label": "nonsense"}]])
def test_labels_are_needed_by_what_reads_them(bert_folder, tmp_path, rows):
    reader, blind = nn.Identity(), SimpleNamespace(needs_labels=False)
    for run in ({"module": blind}, {"module": reader, "callbacks": [blind]}):
        data = attach(make(bert_folder, tmp_path, rows), **run)
        data.setup("fit")
        assert "labels" not in data._rows["train"].column_names
        attach(data, reader)  # the same data, for something that reads labels
        with pytest.raises(DataError, match="'label'"):
            data.setup("fit")
    with pytest.raises(DataError, match="'label'"):
        attach(make(bert_folder, tmp_path, rows), reader).setup("fit")


def test_rows_get_their_labels_when_they_are_needed(bert_folder, tmp_path):
    data = attach(make(bert_folder, tmp_path, [{"text": "a film", "label": 1}]), SimpleNamespace(needs_labels=False))
    data.setup("fit")
    attach(data).setup("fit")
    assert data._rows["train"]["labels"][:] == [1]


def test_validation_rows_without_labels_can_be_predicted(bert_folder, tmp_path):
    data = attach(make(bert_folder, tmp_path, [{"text": "a film"}]), verb="predict")
    data.setup("predict")
    assert len(data._rows["validation"]) == 1


@pytest.mark.parametrize("label", [None, "nonsense"])
def test_rows_to_predict_may_have_labels_here_and_there(bert_folder, tmp_path, label):
    rows = [{"text": "a film", "label": "yes"}, {"text": "a film", "label": label}]
    data = attach(make(bert_folder, tmp_path, rows), verb="predict")
    (tmp_path / "train.jsonl").rename(tmp_path / "test.jsonl")
    data.setup("predict")
    assert "labels" not in data._rows["test"].column_names
    with pytest.raises(DataError, match="row 2: column 'label' is"):
        attach(data, verb="test").setup("test")


def test_calibration_and_masked_language_modelling_read_none():
    assert not CalibrationRun.needs_labels
    assert not MaskedLanguageModelingTask.needs_labels


@pytest.mark.filterwarnings("ignore")
def test_masked_language_modelling_on_text_without_labels(bert_folder, tmp_path, tokenizer_of):
    folder = tokenizer_of("bert")
    data = make(folder, tmp_path, [{"text": "a film of words"}] * 8)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(data.tokenizer), **sizes)).save_pretrained(tmp_path / "tiny")
    task = MaskedLanguageModelingTask(str(tmp_path / "tiny"), max_length=8, tokenizer=folder)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 2


@pytest.mark.parametrize("skipped", ["-", -1])
def test_rows_are_left_out_by_their_label(bert_folder, tmp_path, skipped):
    rows = [{"text": "a film", "label": label} for label in ("yes", skipped, "no")]
    data = make(bert_folder, tmp_path, rows, skip_labels=[str(skipped)])
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert (batch["labels"].tolist(), batch["example_id"].tolist()) == ([1, 0], [0, 2])
    with pytest.raises(DataError, match=r"row 2: column 'label' is '?-1?'?, which is no label"):
        make(bert_folder, tmp_path, rows).setup("fit")
    with pytest.raises(DataError, match=r"train\.jsonl' has no rows but those of skip_labels"):
        make(bert_folder, tmp_path, rows[1:2], skip_labels=[str(skipped)]).setup("fit")
