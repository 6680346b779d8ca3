"""Output files of runs: one per encoder, none overwritten, none from trial runs."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from projects import LENGTH, Classifier, Sentences, loaders, tiny_config, trainer
from torch.utils.data import DataLoader
from transformers import BertModel

from papa_lightning import AttentionConstants, ConstantAttention, HeadGates, PapaError
from papa_lightning.callbacks import CalibrationRun, PredictionWriter
from papa_lightning.encoders import is_calibrated, swapped_layers


class Towers(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = BertModel(tiny_config(), add_pooling_layer=False)
        self.inner = torch.nn.ModuleDict({"b": BertModel(tiny_config(), add_pooling_layer=False)})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return sum(one(**inputs).last_hidden_state.mean() for one in (self.a, self.inner["b"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_each_encoder_has_a_file(tmp_path: Path) -> None:
    module = Towers()
    callbacks = [ConstantAttention(LENGTH, encoder="a"), HeadGates(max_length=LENGTH, encoder="inner.b")]
    trainer(*callbacks, logger=CSVLogger(tmp_path)).fit(module, loaders()["train_dataloaders"])
    paths = [Path(str(callback.constants_path)) for callback in callbacks]
    assert [path.name for path in paths] == ["constants.a.safetensors", "constants.inner.b.safetensors"]
    for path, encoder in zip(paths, (module.a, module.inner["b"]), strict=True):
        written = AttentionConstants.load(path)
        assert torch.equal(written.values[0], swapped_layers(encoder)[0].constants.detach())


def test_each_ranking_has_a_file_too(tmp_path: Path) -> None:
    for name in ("a", "inner.b", "a"):
        callback = HeadGates(0.1, max_length=LENGTH, encoder=name)
        trainer(callback, logger=CSVLogger(tmp_path, "x", "y")).fit(Towers(), loaders()["train_dataloaders"])
    found = sorted(path.name for path in tmp_path.rglob("ranking*"))
    assert found == ["ranking.a-1.json", "ranking.a.json", "ranking.inner.b.json"]


def test_an_output_of_gates_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    module = Classifier()
    with pytest.raises(PapaError, match=r"output is .* cannot be written"):
        trainer(HeadGates(0.1, output=str(tmp_path / "taken/r.json"), max_length=LENGTH)).fit(module, **loaders())
    assert not is_calibrated(module.bert)


def test_a_file_of_an_earlier_run_stays(tmp_path: Path) -> None:
    made = []
    for seed in (0, 1, 2):
        callback = ConstantAttention(LENGTH)
        run = trainer(callback, logger=CSVLogger(tmp_path, name="mine", version="same"))
        run.fit(Classifier(seed), **loaders())
        made.append(Path(str(callback.constants_path)))
    assert [path.name for path in made] == [f"constants{end}.safetensors" for end in ("", "-1", "-2")]
    values = [AttentionConstants.load(path).values for path in made]
    assert not torch.equal(values[0], values[1])


def test_what_cannot_be_written_is_refused_before_the_pass(tmp_path: Path) -> None:
    class Counting(ConstantAttention):
        asked = 0

        def calibration_batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
            self.asked += 1
            return super().calibration_batches(trainer, pl_module)

    (tmp_path / "taken").write_text("a file")
    callback, module = Counting(LENGTH), Classifier()

    class Logger(L.pytorch.loggers.logger.DummyLogger):
        save_dir, name, version = str(tmp_path / "taken"), "a", "b"

    with pytest.raises(PapaError, match=r"the constants file of this run is .* cannot be written"):
        trainer(callback, logger=Logger()).fit(module, **loaders())
    assert callback.asked == 0
    assert not is_calibrated(module.bert)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Predicting(Classifier):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        shares = self(batch).softmax(dim=-1)
        return {"example_id": torch.arange(len(shares)), "labels": shares.argmax(dim=-1), "probabilities": shares}


@pytest.mark.parametrize("number", [True, 2])
def test_a_trial_run_leaves_everything_as_it_was(number: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("constants.safetensors", "ranking.json", "mine.json", "predictions.jsonl", "mine.jsonl"):
        Path(name).write_text("precious")
    before = contents(tmp_path)
    module = Predicting()
    for callback in (ConstantAttention(LENGTH), HeadGates(0.1, max_length=LENGTH, output="mine.json")):
        trainer(callback, logger=True, fast_dev_run=number).fit(module, **loaders())
        assert callback.constants_path is None
    run = CalibrationRun(ConstantAttention(LENGTH), "constants.safetensors")
    trainer(run, fast_dev_run=number).fit(Classifier(), **loaders())
    for output in (None, "mine.jsonl"):
        writing = trainer(PredictionWriter(output), fast_dev_run=number)
        writing.predict(Predicting(), DataLoader(Sentences(4), 2), return_predictions=False)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) != []


@pytest.mark.parametrize("arguments", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}])
def test_a_calibration_of_nothing_does_not_end_well(arguments: Any, tmp_path: Path) -> None:
    output = tmp_path / "constants.safetensors"
    with pytest.raises(PapaError, match=r"there was nothing to calibrate on.*limit_train_batches, max_epochs"):
        trainer(CalibrationRun(ConstantAttention(LENGTH), str(output)), **arguments).fit(Classifier(), **loaders())
    assert not output.exists()
    module = Classifier()
    trainer(ConstantAttention(LENGTH), **arguments).fit(module, **loaders())  # nothing was asked for here
    assert not is_calibrated(module.bert)


def test_barebones(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    callback, module = ConstantAttention(LENGTH), Classifier()
    settings = {"logger": None, "enable_checkpointing": None, "enable_progress_bar": None, "enable_model_summary": None}
    trainer(callback, barebones=True, log_every_n_steps=None, **settings).fit(module, **loaders())
    assert is_calibrated(module.bert)
    assert list(tmp_path.iterdir()) == []
