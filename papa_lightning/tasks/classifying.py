"""What tasks with one class an example have in common."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.checks import checked_labels
from papa_lightning.tasks.scores import Scored


class ExampleClassificationTask(EncoderTask):
    """A task whose logits are (B, C), and whose labels are (B,)."""

    def score(self, batch: Mapping[str, Tensor], batch_idx: int, rows: int | None = None) -> Scored:
        """Compute the loss of a batch, and the classes of its examples; see `EncoderTask.score`."""
        logits = self(batch)[:rows]
        labels = checked_labels(batch, self.hparams["num_labels"], per_token=False, look=batch_idx == 0)[:rows]
        return Scored(self.loss(logits, labels), len(labels), logits.argmax(dim=-1), labels)

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict the class of every example.

        Args:
            batch: A batch, with or without labels.

        Returns:
            `labels` (B,), the predicted classes, and `probabilities` (B, C) in float32.
        """
        probabilities = self(batch).float().softmax(dim=-1)
        return {"labels": probabilities.argmax(dim=-1), "probabilities": probabilities}
