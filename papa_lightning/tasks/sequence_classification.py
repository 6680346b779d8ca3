"""Classification of sequences, as in CoLA, MRPC, SST-2 and MNLI."""

from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor, nn
from torchmetrics import MetricCollection

from papa_lightning.checks import check_choice
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.batch_checks import checked_labels
from papa_lightning.tasks.metrics import classification_metrics
from papa_lightning.tasks.probes import LayerwiseProbe, PooledProbe, Pooling
from papa_lightning.tasks.scores import Scored


class ExampleClassificationTask(EncoderTask):
    """A task whose logits are (B, C), and whose labels are (B,)."""

    def score(self, batch: Mapping[str, Tensor], batch_idx: int, rows: int | None = None) -> Scored:
        """Compute the loss of a batch, and the classes of its examples; see `EncoderTask.score`."""
        logits = self(batch)[:rows]
        labels = checked_labels(batch, self.hparams["num_labels"], per_token=False, look=batch_idx == 0)[:rows]
        return Scored(self.loss(logits, labels), len(labels), logits.argmax(dim=-1), labels)

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predicted classes of a batch, `labels` (B,), and their `probabilities` (B, C) in float32."""
        probabilities = self(batch).float().softmax(dim=-1)
        return {"labels": probabilities.argmax(dim=-1), "probabilities": probabilities}


class SequenceClassificationTask(ExampleClassificationTask):
    """Classify sequences with a probe and cross-entropy.

    A batch is a mapping of `input_ids`, `attention_mask` and, for encoders that tell segments apart,
    `token_type_ids`, each (B, T); `labels` (B,), classes from 0 to C-1; `example_id` (B,), which only prediction
    reads. T = `max_length` for the layerwise probe, at most that for the other poolings. The metrics are those of
    `classification_metrics`.

    Logged are ``train/loss`` at every step, and per epoch ``val/loss``, ``test/loss`` and every metric, such as
    ``val/accuracy``; a second validation set has its own, see `metrics_of`. A prediction has `labels` (B,) and
    `probabilities` (B, C).

    Args:
        pooling: ``"layerwise"``: `LayerwiseProbe`, the probe of the paper. ``"mean"`` and ``"class_token"``:
            `PooledProbe` over the last level only.
        args: Arguments of `EncoderTask`.
        kwargs: Arguments of `EncoderTask`.

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

    def __init__(self, *args: Any, pooling: Pooling = "layerwise", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def configure_probe(self) -> nn.Module:
        """Build the probe of `pooling`; refuse an unknown one."""
        pooling: Pooling = self.hparams["pooling"]
        check_choice("pooling", pooling, get_args(Pooling))
        if pooling != "layerwise":
            return PooledProbe(pooling, **self.probe_sizes)
        return LayerwiseProbe(self.num_levels, self.hparams["max_length"], **self.probe_sizes)

    def configure_metrics(self) -> MetricCollection:
        """Build the metrics of `classification_metrics`."""
        return classification_metrics(self.hparams["metrics"], self.hparams["num_labels"])
