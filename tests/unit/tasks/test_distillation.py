"""Staying near the original encoder while a swapped one learns."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from papa_lightning import PapaError, SequenceClassificationTask
from papa_lightning.callbacks import SwappedAttention

LENGTH = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder whose weights are large enough for attention to matter."""
    path = tmp_path_factory.mktemp("encoder")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=30, max_position_embeddings=LENGTH, initializer_range=0.4, **sizes)
    ).save_pretrained(path)
    return str(path)


def make_data() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(8, LENGTH, dtype=torch.long)
    mask[::2, 6:] = 0
    tokens = torch.randint(5, 30, (8, LENGTH), generator=generator)
    return [{"input_ids": tokens[i], "attention_mask": mask[i], "labels": tokens[i, 0] % 2} for i in range(8)]


def make(folder: str, **options: Any) -> SequenceClassificationTask:
    torch.manual_seed(0)
    return SequenceClassificationTask(folder, num_labels=2, max_length=LENGTH, **{"learning_rate": 1e-2} | options)


def fit(task: SequenceClassificationTask, quiet_trainer: Any, epochs: int, kind: str = "aft_full", **own: Any) -> Any:
    torch.manual_seed(1)
    trainer = quiet_trainer(callbacks=[SwappedAttention(kind, max_length=LENGTH, **own)], max_epochs=epochs)
    trainer.fit(task, DataLoader(make_data(), batch_size=8))
    return trainer.callback_metrics


def test_the_encoder_comes_nearer(folder: str, quiet_trainer: Any) -> None:
    first = fit(make(folder, distillation=1.0), quiet_trainer, 1)["train/distillation"]
    task = make(folder, distillation=1.0)
    last = fit(task, quiet_trainer, 25, learning_rate=0.05)["train/distillation"]
    assert last < 0.8 * first
    assert not any("teacher" in key for key in task.state_dict())
    assert "training_step" not in vars(task)


def _plain_descent(task: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([one for one in task.parameters() if one.requires_grad], lr=1e-2)


def test_the_weight_counts_and_zero_is_nothing(folder: str, quiet_trainer: Any) -> None:
    """After one step of plain gradient descent the weights differ by the weight times the gradient of the distance."""
    found = []
    for weight in (0.0, 1.0, 3.0):
        task = make(folder, distillation=weight, dropout=0.0, freeze_encoder=True)
        task.configure_optimizers = partial(_plain_descent, task)
        metrics = fit(task, quiet_trainer, 1)
        assert ("train/distillation" in metrics) == (weight > 0)
        found.append(task.encoder.encoder.layer[1].attention.self.papa.query_shift.detach().clone())
    assert (found[1] - found[0]).abs().max() > 1e-6
    torch.testing.assert_close(found[2] - found[0], 3 * (found[1] - found[0]), rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distillation": -1.0}, "distillation is -1.0: pass a value that is at least 0"),
        (
            {"distillation": 1.0, "freeze_encoder": True},
            "distillation is 1.0, but nothing in the encoder learns",
        ),
    ],
)
def test_refusals(folder: str, quiet_trainer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PapaError, match=message):
        fit(make(folder, **options), quiet_trainer, 1, kind="dynamic")


def test_nothing_is_packed_while_a_teacher_runs_on_the_same_inputs(folder: str, quiet_trainer: Any) -> None:
    """It would not hear from where tokens were moved."""
    packed, task = list[bool](), make(folder, distillation=1.0)
    original = task.pack
    task.pack = lambda inputs: packed.append(original(inputs) is not None)
    fit(task, quiet_trainer, 1)
    assert packed == [False]
    task.eval()
    with torch.no_grad():
        task(next(iter(DataLoader(make_data(), batch_size=8))))
    assert packed == [False, True]
