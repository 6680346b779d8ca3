"""Classification of whole sequences: CoLA, MRPC, SST-2, MNLI and the like."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torchmetrics import MetricCollection

from papa_lightning.exceptions import PapaError
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.checks import check_classes
from papa_lightning.tasks.metrics import classification_metrics
from papa_lightning.tasks.probes import LayerwiseProbe


class SequenceClassificationTask(EncoderTask):
    """Classify sequences with a `LayerwiseProbe` and cross-entropy.

    The arguments are those of `EncoderTask`. A batch is a mapping of `input_ids`, `attention_mask` and, for encoders
    that tell segments apart, `token_type_ids`, each (B, T) with T = `max_length`; `labels` (B,), classes from 0 to
    C-1; `example_id` (B,), which only prediction reads. The metrics are those of `classification_metrics`.

    Logged are ``train/loss`` at every step, and per epoch ``val/loss``, ``test/loss`` and every metric, such as
    ``val/accuracy``; a second validation set has its own under ``val/accuracy/dataloader_idx_1``.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(
        ...     vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        ... )
        >>> with TemporaryDirectory() as folder:
        ...     BertModel(config).save_pretrained(folder)
        ...     task = SequenceClassificationTask(folder, num_labels=2, max_length=8, metrics=["f1", "accuracy"])
        >>> task.score_name
        'val/f1'
        >>> batch = {"input_ids": torch.ones(3, 8, dtype=torch.long), "attention_mask": torch.ones(3, 8)}
        >>> task(batch).shape
        torch.Size([3, 2])
    """

    def configure_probe(self) -> nn.Module:
        """Build the probe.

        Returns:
            A `LayerwiseProbe` for all levels of the encoder.
        """
        return LayerwiseProbe(
            num_levels=self.encoder.config.num_hidden_layers + 1,
            max_length=self.hparams["max_length"],
            hidden_size=self.encoder.config.hidden_size,
            num_labels=self.hparams["num_labels"],
            dropout=self.hparams["dropout"],
        )

    def configure_loss(self) -> nn.Module:
        """Build the loss.

        Returns:
            Cross-entropy of logits (B, C) and labels (B,), averaged over the batch.
        """
        return nn.CrossEntropyLoss()

    def configure_metrics(self) -> MetricCollection:
        """Build the metrics.

        Returns:
            The metrics under their names.

        Raises:
            PapaError: If a metric is unknown.
        """
        return classification_metrics(self.hparams["metrics"], self.hparams["num_labels"])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Compute and log the loss of a batch.

        Args:
            batch: A labelled batch.
            batch_idx: Its number in the epoch.

        Returns:
            The loss, a scalar.

        Raises:
            PapaError: If the batch has no labels, labels that are no classes, or does not fit encoder and probe.
        """
        logits = self(batch)
        labels = self._labels(batch, batch_idx)
        loss: Tensor = self.loss(logits, labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and metrics of a labelled batch.

        Args:
            batch: A labelled batch.
            batch_idx: Its number in the data loader.
            dataloader_idx: Which of several validation sets it comes from.
        """
        self._evaluate(batch, batch_idx, "val", dataloader_idx)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and metrics of a labelled batch.

        Args:
            batch: A labelled batch.
            batch_idx: Its number in the data loader.
            dataloader_idx: Which of several test sets it comes from.
        """
        self._evaluate(batch, batch_idx, "test", dataloader_idx)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Predict the classes of a batch, with or without labels.

        Args:
            batch: A batch with `example_id`.
            batch_idx: Its number in the data loader.
            dataloader_idx: Which of several data loaders it comes from.

        Returns:
            `example_id` (B,), `probabilities` (B, C) in float32 and `labels` (B,), the predicted classes.

        Raises:
            PapaError: If the batch has no `example_id`, or does not fit encoder and probe.
        """
        if "example_id" not in batch:
            raise PapaError(
                "a batch to predict has no example_id, so that predictions of several processes could not be put in "
                "order: let the datamodule number its examples."
            )
        probabilities = self(batch).float().softmax(dim=-1)
        return {
            "example_id": batch["example_id"],
            "probabilities": probabilities,
            "labels": probabilities.argmax(dim=-1),
        }

    def _evaluate(
        self, batch: Mapping[str, Tensor], batch_idx: int, stage: Literal["val", "test"], dataloader_idx: int
    ) -> None:
        logits = self(batch)
        labels = self._labels(batch, batch_idx)
        metrics = self.metrics_of(stage, dataloader_idx)
        metrics.update(logits.argmax(dim=-1), labels)
        # The names of the metrics tell data loaders apart already, and the first one's stay plain.
        suffix = f"/dataloader_idx_{dataloader_idx}" if dataloader_idx else ""
        size = len(labels)
        self.log(
            f"{stage}/loss{suffix}",
            self.loss(logits, labels),
            sync_dist=True,
            add_dataloader_idx=False,
            batch_size=size,
        )
        # The objects are logged, not their values: Lightning computes them once an epoch over all processes.
        self.log_dict(metrics, prog_bar=True, add_dataloader_idx=False, batch_size=size)

    def _labels(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the labels of a batch as int64 (B,), checked."""
        if "labels" not in batch:
            raise PapaError(
                f"a batch has no labels, only {', '.join(batch)}: add them to the data set, or use predict, which "
                "needs none."
            )
        labels, batch_size = batch["labels"], len(batch["input_ids"])
        if labels.shape != (batch_size,) or labels.is_floating_point():
            raise PapaError(
                f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}, but must be ({batch_size},) "
                "integers: one class for each sequence."
            )
        # Reading values waits for an accelerator, so there only the first batch of an epoch is looked at, which is
        # enough for a data set with other classes than num_labels says.
        if labels.device.type == "cpu" or batch_idx == 0:
            check_classes(labels, self.hparams["num_labels"])
        return labels.long()
