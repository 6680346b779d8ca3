from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_f1_score, multiclass_accuracy
from transformers import BertConfig, BertModel

from papa_lightning.errors import PapaError
from papa_lightning.tasks import SequenceClassificationTask

LENGTH, VOCABULARY = 8, 40


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=20, **sizes)).save_pretrained(folder)
    return str(folder)


def make_examples(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Sequences whose second token determines the class."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, VOCABULARY, (count, LENGTH), generator=generator)
    labels = torch.randint(0, 2, (count,), generator=generator)
    input_ids[:, 1] = 3 + labels
    mask = torch.ones(LENGTH, dtype=torch.long)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label, "example_id": torch.tensor(number)}
        for number, (ids, label) in enumerate(zip(input_ids, labels, strict=True))
    ]


def make_loader(count: int, batch_size: int, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(make_examples(count, seed), batch_size=batch_size)


def make_task(encoder: str, **arguments: Any) -> SequenceClassificationTask:
    torch.manual_seed(1)
    return SequenceClassificationTask(encoder, **({"num_labels": 2, "max_length": LENGTH} | arguments))


def make_trainer(**arguments: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**(quiet | {"accelerator": "cpu", "devices": 1} | arguments))


class Losses(Callback):
    """Keeps what is logged at every training step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("freeze_encoder", [True, False])
def test_learns_a_toy_problem(freeze_encoder: bool, encoder: str) -> None:
    task = make_task(encoder, freeze_encoder=freeze_encoder, learning_rate=1e-2 if freeze_encoder else 5e-3)
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    losses = Losses()
    trainer = make_trainer(max_epochs=5, callbacks=[losses])
    trainer.fit(task, make_loader(64, 16), make_loader(32, 16, seed=1))
    assert sum(losses.values[-4:]) < 0.5 * sum(losses.values[:4])
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    unchanged = [torch.equal(value, before[name]) for name, value in task.encoder.state_dict().items()]
    assert all(unchanged) == freeze_encoder


def test_fast_dev_run_of_the_reference_preset(encoder: str) -> None:
    task = make_task(encoder, preset="reference")
    make_trainer(fast_dev_run=True).fit(task, make_loader(4, 2), make_loader(4, 2))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_reduced_precision(precision: str, encoder: str) -> None:
    task, trainer = make_task(encoder), make_trainer(max_steps=2, precision=precision)
    # oneDNN's bfloat16 kernels die of an illegal instruction on virtual machines that announce AMX and forbid it.
    with torch.backends.mkldnn.flags(enabled=False):
        trainer.fit(task, make_loader(8, 4), make_loader(4, 4))
        predictions = trainer.predict(task, make_loader(4, 4))[0]
    assert predictions["probabilities"].dtype == torch.float32


def test_batch_of_one_in_every_loop(encoder: str) -> None:
    task, trainer, loader = make_task(encoder), make_trainer(max_epochs=1), make_loader(2, 1)
    trainer.fit(task, loader, loader)
    trainer.test(task, loader, verbose=False)
    assert [len(batch["labels"]) for batch in trainer.predict(task, loader)] == [1, 1]


def test_what_is_logged(encoder: str) -> None:
    task = make_task(encoder, metrics=["f1", "accuracy", "matthews_corrcoef"])
    trainer = make_trainer(max_epochs=1)
    trainer.fit(task, make_loader(8, 4), make_loader(8, 4))
    names = {"loss", "f1", "accuracy", "matthews_corrcoef"}
    assert set(trainer.callback_metrics) == {"train/loss"} | {f"val/{name}" for name in names}
    assert task.score_name in trainer.callback_metrics
    trainer.test(task, make_loader(8, 4), verbose=False)
    assert set(trainer.callback_metrics) == {f"test/{name}" for name in names}


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_those_of_all_data_together(stage: str, encoder: str) -> None:
    task = make_task(encoder, metrics=["accuracy", "f1"])
    # Batches of 4, 4 and 3: a mean of the scores of batches would be something else.
    loader, trainer = make_loader(11, 4, seed=3), make_trainer()
    evaluate = trainer.validate if stage == "val" else trainer.test
    (scores,) = evaluate(task, loader, verbose=False)
    batches = trainer.predict(task, loader)
    predicted = torch.cat([batch["labels"] for batch in batches])
    labels = torch.stack([example["labels"] for example in iter(loader.dataset)])
    log_probabilities = torch.cat([batch["probabilities"] for batch in batches]).log()
    assert scores[f"{stage}/accuracy"] == pytest.approx(float(multiclass_accuracy(predicted, labels, 2, "micro")))
    assert scores[f"{stage}/f1"] == pytest.approx(float(binary_f1_score(predicted, labels)))
    expected_loss = float(torch.nn.functional.nll_loss(log_probabilities, labels))
    assert scores[f"{stage}/loss"] == pytest.approx(expected_loss, abs=1e-6)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_each_of_several_sets_has_metrics_of_its_own(stage: str, encoder: str) -> None:
    task, first, second = make_task(encoder), make_loader(7, 4, seed=4), make_loader(9, 4, seed=5)

    def evaluate(*loaders: DataLoader[Any]) -> dict[str, float]:
        trainer = make_trainer()
        (trainer.validate if stage == "val" else trainer.test)(task, list(loaders), verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    alone, other = evaluate(first), evaluate(second)
    expected = alone | {f"{name}/dataloader_idx_1": value for name, value in other.items()}
    assert evaluate(first, second) == pytest.approx(expected)
    assert alone != other
    assert evaluate(first) == pytest.approx(alone)


def test_monitored_score_survives_several_validation_sets(encoder: str, tmp_path: Path) -> None:
    task = make_task(encoder)
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(tmp_path, monitor=task.score_name, mode="max")
    trainer = make_trainer(max_epochs=2, callbacks=[checkpoint], enable_checkpointing=True)
    trainer.fit(task, make_loader(8, 4), [make_loader(8, 4), make_loader(4, 4, seed=1)])
    assert checkpoint.best_model_score is not None
    loaded = SequenceClassificationTask.load_from_checkpoint(checkpoint.best_model_path)
    assert loaded.hparams == task.hparams


def test_checkpoint_round_trip(encoder: str, tmp_path: Path) -> None:
    task, trainer, loader = make_task(encoder, learning_rate=1e-2), make_trainer(max_steps=3), make_loader(8, 4)
    trainer.fit(task, loader)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    loaded = SequenceClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt", strict=True, weights_only=True)
    assert loaded.hparams == task.hparams
    for ours, theirs in zip(trainer.predict(task, loader), trainer.predict(loaded, loader), strict=True):
        assert torch.equal(ours["probabilities"], theirs["probabilities"])


def test_predictions(encoder: str) -> None:
    examples = [{name: value for name, value in example.items() if name != "labels"} for example in make_examples(5)]
    task, trainer = make_task(encoder, num_labels=3), make_trainer()
    batches = trainer.predict(task, DataLoader(examples, batch_size=4))
    assert [set(batch) for batch in batches] == [{"example_id", "probabilities", "labels"}] * 2
    assert torch.cat([batch["example_id"] for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    probabilities = torch.cat([batch["probabilities"] for batch in batches])
    assert probabilities.shape == (5, 3)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(5))
    assert torch.equal(probabilities.argmax(dim=-1), torch.cat([batch["labels"] for batch in batches]))


def test_prediction_without_example_id(encoder: str) -> None:
    batch = next(iter(make_loader(2, 2)))
    del batch["example_id"]
    with pytest.raises(PapaError, match="no example_id"):
        make_task(encoder).predict_step(batch, 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "a batch has no labels, only input_ids.*use predict"),
        (torch.tensor([0, 2]), "value 2, but num_labels=2 allows 0 to 1: pass num_labels=3 or more"),
        (torch.tensor([0, -1]), "value -1.*as in the test splits of GLUE"),
        (torch.tensor([0.5, 1.0]), "torch.float32, but must be"),
        (torch.tensor([[0], [1]]), r"shape \(2, 1\)"),
    ],
)
@pytest.mark.parametrize("batch_idx", [0, 3])
def test_bad_labels(labels: Tensor | None, message: str, batch_idx: int, encoder: str) -> None:
    batch = next(iter(make_loader(2, 2)))
    del batch["labels"]
    if labels is not None:
        batch["labels"] = labels
    task = make_task(encoder)
    for step in (task.training_step, task.validation_step, task.test_step):
        with pytest.raises(PapaError, match=message):
            step(batch, batch_idx)
