"""Constants that learn and distillation on two processes give what one process gives."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from distributed.processes import in_two_processes
from projects import LENGTH, Classifier, Sentences

from papa_lightning import ConstantAttention, Distillation, LearnedConstants
from papa_lightning.encoders import swapped_layers


class Plain(Classifier):
    """Plain gradient descent without dropout, so that a batch on one process is two halves on two."""

    def __init__(self) -> None:
        super().__init__(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def fit(devices: int) -> torch.Tensor:
    data, module = Sentences(8), Plain()
    data.attention_mask[:] = 1  # all halves count alike in the mean over tokens
    arguments: dict[str, Any] = {"strategy": "ddp", "devices": 2} if devices == 2 else {"devices": 1}
    run = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[LearnedConstants(0.1), Distillation(3.0), ConstantAttention(LENGTH)],
        **arguments,
    )  # fmt: skip
    run.fit(module, torch.utils.data.DataLoader(data, batch_size=8 // devices))
    return torch.stack([layer.constants.detach() for layer in swapped_layers(module.bert)])


def on_two(_: Path) -> torch.Tensor:
    return fit(2)


@pytest.mark.distributed
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    first, second = in_two_processes(on_two, tmp_path)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, fit(1), rtol=1e-4, atol=1e-6)
