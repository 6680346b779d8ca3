"""Images in two processes: the first draws, and none waits for another."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from distributed.processes import in_two_processes
from lightning.pytorch.loggers import CSVLogger
from projects import LENGTH, Classifier, loaders

from papa_lightning import AttentionImages, HeadGates


def fit(folder: Path) -> list[str]:
    run: Any = L.Trainer(
        accelerator="cpu", strategy="ddp", devices=2, max_epochs=2, logger=CSVLogger(folder),
        callbacks=[AttentionImages(), HeadGates(max_length=LENGTH, learning_rate=0.1)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    run.fit(Classifier(), **loaders())
    return [str(path) for path in (run.callbacks[1].constants_path, run.callbacks[1].ranking_path)]


@pytest.mark.distributed
def test_the_first_process_draws(tmp_path: Path) -> None:
    first, second = in_two_processes(fit, tmp_path)
    assert first == second, "both know the folder of the run"
    names = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert names == ["attention-constants-000000.png", *(f"attention-gates-{step:06d}.png" for step in (0, 1, 2))]
    assert len(list(tmp_path.rglob("constants.safetensors"))) == 1
