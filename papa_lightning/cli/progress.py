"""What the Trainer of the command line shows: a short summary of the model, and lines in place of bars."""

from __future__ import annotations

import sys
import time
from typing import Any

from papa_lightning.either_lightning import L, ModelSummary, ProgressBar
from papa_lightning.progress import INTERVAL
from papa_lightning.text import Table, tell


class ShortSummary(ModelSummary):
    """Parts of the model, and their parameters. Lightning's own also counts operations, which were none yet."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]], total_parameters: int, trainable_parameters: int, *_: Any, **__: Any
    ) -> None:
        """Print the table."""
        columns = dict(summary_data)
        parts = zip(columns["Name"], columns["Type"], columns["Params"], strict=True)
        rows = [(name, kind, number.strip()) for name, kind, number in parts if number.strip() != "0"]
        total = ("all", f"{trainable_parameters:,} parameters learn", f"{total_parameters:,}")
        tell(Table(("part", "class", "parameters"), [*rows, total], left=2))


class ProgressLines(ProgressBar):
    """A line a minute on stderr, where no terminal shows a progress bar."""

    def __init__(self) -> None:
        super().__init__()
        self._began = self._last = time.monotonic()

    def disable(self) -> None:
        """Print nothing, on all processes but the first."""
        self._last = float("inf")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Say epoch and batch, and what the progress bar would show."""
        if self._is_time():
            epochs = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
            values = self.get_metrics(trainer, pl_module).items()
            scores = "".join(f", {name} {value:.4g}" for name, value in values if isinstance(value, float))
            self._say(
                f"training: epoch {trainer.current_epoch + 1}{epochs}", args[2] + 1, self.total_train_batches, scores
            )

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Say the batch."""
        self.has_dataloader_changed(args[3] if len(args) > 3 else 0)  # the number of batches is that of the present one
        if self._is_time():
            self._say("validation", args[2] + 1, self.total_val_batches_current_dataloader)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Say the batch."""
        self.has_dataloader_changed(args[3] if len(args) > 3 else 0)  # the number of batches is that of the present one
        if self._is_time():
            self._say("test", args[2] + 1, self.total_test_batches_current_dataloader)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Say the batch."""
        self.has_dataloader_changed(args[3] if len(args) > 3 else 0)  # the number of batches is that of the present one
        if self._is_time():
            self._say("prediction", args[2] + 1, self.total_predict_batches_current_dataloader)

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._last < INTERVAL:
            return False
        self._last = now
        return True

    def _say(self, stage: str, batch: int, batches: int | float, scores: str = "") -> None:
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        text = f"{stage}, batch {batch} of {batches}, after {minutes}:{seconds:02}{scores}"
        print(text, file=sys.stderr, flush=True)
