"""Causal language modelling."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import PreTrainedModel

from papa_lightning.checks import check_choice
from papa_lightning.encoders import attention_reaches
from papa_lightning.errors import PapaError
from papa_lightning.from_scratch.base import FromScratchTask
from papa_lightning.tasks.batch_checks import checked_labels
from papa_lightning.tasks.metrics import LogitPerplexity
from papa_lightning.tasks.scores import UNLABELLED, Scored

_METRICS = ("bits_per_character", "bits_per_byte", "accuracy", "perplexity")


class BitsPerToken(LogitPerplexity):
    r"""The mean of :math:`-\log_2 p` over all tokens: the loss in bits, where the logged loss is in nats.

    Per character or byte, according to what the tokens are.

    Example:
        >>> import torch
        >>> metric = BitsPerToken()
        >>> metric(torch.zeros(3, 8), torch.tensor([0, 4, 2]))
        tensor(3.)
    """

    def compute(self) -> Tensor:
        """Compute the bits, a scalar of at least 0; lower is better."""
        # Not the logarithm of the perplexity, which overflows for a bad model.
        return self.total_log_probs / self.count / math.log(2)


class NextTokenProbe(nn.Module):
    """Logits of the next token at every token, one linear map of the last hidden states.

    Args:
        hidden_size: d.
        num_labels: V.
        dropout: Share of the hidden states that training sets to zero.
    """

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden_states: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
        """Compute the logits (B, T, V) of the last hidden states (B, T, d); the mask is not read."""
        logits: Tensor = self.classifier(self.dropout(hidden_states[-1]))
        return logits


class LanguageModelingTask(FromScratchTask):
    """Predict the next token with a causal Transformer trained from random weights.

    A batch has `input_ids` (B, T), `attention_mask` (B, T) and `labels` (B, T), the token that follows each one, or
    -100: those of `TextFileDataModule`. Logged are ``train/loss`` and ``val/loss`` in nats a token, and the metrics:

    - ``bits_per_character`` or ``bits_per_byte``, the score: the loss in bits, so that *lower is better*
      (``ModelCheckpoint(monitor=task.score_name, mode="min")``).
    - ``accuracy``: share of tokens that were predicted with the highest probability.
    - ``perplexity``: :math:`e` to the loss.

    A prediction has `labels` (B, T), the most likely next token, and its `probabilities` (B, T).

    Args:
        num_labels: V, the number of tokens.
        max_length: T, the longest sequence.
        metrics: Names of the metrics; the first one gives `score_name`.
        kwargs: Those of `FromScratchTask`.

    Raises:
        PapaError: See `FromScratchTask`; also if an encoder from a folder is not causal, or knows fewer tokens.

    Example:
        >>> import torch
        >>> task = LanguageModelingTask(num_labels=30, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> task.score_name
        'val/bits_per_character'
        >>> task({"input_ids": torch.ones(3, 8, dtype=torch.long), "attention_mask": torch.ones(3, 8)}).shape
        torch.Size([3, 8, 30])
    """

    def __init__(
        self,
        num_labels: int,
        max_length: int = 256,
        metrics: Sequence[str] = ("bits_per_character", "accuracy"),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_labels=num_labels, max_length=max_length, metrics=metrics, **kwargs)

    def transformer_sizes(self) -> Mapping[str, Any]:
        """Vocabulary and positions; causal."""
        vocabulary, positions = self.hparams["num_labels"], self.hparams["max_length"]
        return {"vocab_size": vocabulary, "max_position_embeddings": positions, "causal": True}

    def make_encoder(self) -> PreTrainedModel:
        """Make or load the encoder, and see that it cannot look ahead; see `EncoderTask.make_encoder`."""
        encoder, tokens = super().make_encoder(), self.hparams["num_labels"]
        if any(reach.after != 0 for reach in attention_reaches(encoder)):
            raise PapaError(
                f"encoder {self.hparams['encoder']!r} is not causal: its tokens would see the one that they are to "
                "predict. Pass a causal encoder, or None for a new one."
            )
        if encoder.config.vocab_size < tokens:
            raise PapaError(
                f"encoder {self.hparams['encoder']!r} knows {encoder.config.vocab_size} tokens, but the data have "
                f"{tokens}: pass the data that it was trained on, or None for a new encoder."
            )
        return encoder

    def configure_probe(self) -> nn.Module:
        """Build the probe, a `NextTokenProbe`."""
        return NextTokenProbe(**self.probe_sizes)

    def configure_metrics(self) -> MetricCollection:
        """Build the metrics, which take logits (N, V) and tokens (N,), -100 for none; refuse unknown ones."""
        for name in self.hparams["metrics"]:
            check_choice("metrics", name, _METRICS)
        accuracy = partial(MulticlassAccuracy, num_classes=self.hparams["num_labels"], average="micro")
        makers: dict[str, Callable[..., Metric]] = {"accuracy": accuracy, "perplexity": LogitPerplexity}
        return MetricCollection(
            {name: makers.get(name, BitsPerToken)(ignore_index=UNLABELLED) for name in self.hparams["metrics"]}
        )

    def score(self, batch: Mapping[str, Tensor], batch_idx: int, rows: int | None = None) -> Scored:
        """Compute the loss of a batch in nats, and the logits of its tokens; see `EncoderTask.score`."""
        logits = self(batch)[:rows]
        labels = checked_labels(batch, self.hparams["num_labels"], per_token=True, look=batch_idx == 0)[:rows]
        # Counting waits for an accelerator, and only evaluation needs it.
        count = len(labels) if self.training else int((labels != UNLABELLED).sum())
        return Scored(self.loss(logits, labels), count, logits.detach().flatten(0, 1), labels.flatten())

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict the token after each one: `labels` (B, T), -100 at padding, and `probabilities` (B, T) in float32."""
        best, tokens = self(batch).float().softmax(dim=-1).max(dim=-1)
        padding = batch["attention_mask"] == 0
        return {"labels": tokens.masked_fill(padding, UNLABELLED), "probabilities": best.masked_fill(padding, 0.0)}
