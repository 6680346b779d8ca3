"""What the Trainer of the command line shows of model and progress."""

from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from papa_lightning.cli import progress
from papa_lightning.cli.progress import ProgressLines, ShortSummary


class Watched(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        found: Any = super().training_step(batch, batch_idx)
        self.log("train/loss", found["loss"], prog_bar=True)
        return found


def trainer(*callbacks: Any) -> Trainer:
    limits: dict[str, Any] = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_predict_batches": 1}
    return Trainer(
        max_epochs=1, callbacks=list(callbacks), logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        accelerator="cpu", **limits
    )  # fmt: skip


def test_lines_say_how_far_the_work_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module: LightningModule = Watched()
    trainer(ProgressLines(), ShortSummary()).fit(module)
    printed = capsys.readouterr()
    assert "batch" not in printed.err  # it took less than a minute
    assert [line.split() for line in printed.out.splitlines()] == [
        ["part", "class", "parameters"],
        ["layer", "Linear", "66"],
        ["all", "66", "parameters", "learn", "66"],
    ]
    assert "FLOPs" not in printed.out
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    trainer(ProgressLines(), ShortSummary()).fit(module)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("training: epoch 1 of 1, batch 2 of 2, after 0:00, train/loss") for line in lines)
    assert any(line.startswith("validation, batch 1 of 1, after 0:00") for line in lines)
    trainer(ProgressLines()).predict(module)
    assert "prediction, batch 1 of 1, after 0:00" in capsys.readouterr().err
