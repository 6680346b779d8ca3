"""Classification of tokens, as for named entities and parts of speech."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection

from papa_lightning.tag_schemes import Scheme
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.batch_checks import checked_labels
from papa_lightning.tasks.metrics import token_metrics
from papa_lightning.tasks.probes import TokenProbe
from papa_lightning.tasks.scores import UNLABELLED, Scored

_WORDS = ("word_ids", "num_words")


class TokenClassificationTask(EncoderTask):
    """Tag words with a `TokenProbe` and cross-entropy, averaged over the words of a batch.

    A batch is as for `SequenceClassificationTask`, but `labels` is (B, T): the tag of a word at its first sub-token,
    and -100 everywhere else. The metrics are those of `token_metrics`.

    A prediction has `labels` (B, T) and `probabilities` (B, T, C). Words are predicted where the batch has labels,
    that is at first sub-tokens. In a batch or row without labels the beginnings of words are unknown: there every real
    token has a prediction, special tokens too. Elsewhere `labels` is -100.

    Args:
        encoder: As for `EncoderTask`.
        num_labels: The number of tags.
        max_length: T.
        metrics: Names of the metrics; the first one gives `score_name`.
        scheme: Scheme of the tags, for ``"entity_f1"``. None: recognised by `label_names`.
        kwargs: The other ones of `EncoderTask`.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(
        ...     vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        ... )
        >>> with TemporaryDirectory() as folder:
        ...     BertModel(config).save_pretrained(folder)
        ...     task = TokenClassificationTask(folder, num_labels=5, max_length=8)
        >>> batch = {"input_ids": torch.ones(3, 8, dtype=torch.long), "attention_mask": torch.ones(3, 8)}
        >>> task(batch).shape
        torch.Size([3, 8, 5])
    """

    def __init__(
        self,
        encoder: str,
        num_labels: int,
        max_length: int = 64,
        metrics: Sequence[str] = ("token_accuracy",),
        scheme: Scheme | None = None,
        **kwargs: Any,
    ) -> None:
        self._scheme = scheme
        super().__init__(encoder=encoder, num_labels=num_labels, max_length=max_length, metrics=metrics, **kwargs)

    def configure_probe(self) -> nn.Module:
        """Build a `TokenProbe` for all levels of the encoder."""
        return TokenProbe(self.num_levels, **self.probe_sizes)

    def configure_metrics(self) -> MetricCollection:
        """Build the metrics of `token_metrics`; refuse `label_names` that do not suit them."""
        return token_metrics(self.hparams["metrics"], self.hparams["num_labels"], self.label_names, self._scheme)

    def score(self, batch: Mapping[str, Tensor], batch_idx: int, rows: int | None = None) -> Scored:
        """Compute the loss of a batch, and the tags of its words; see `EncoderTask.score`."""
        logits = self(batch)[:rows]
        labels = checked_labels(batch, self.hparams["num_labels"], per_token=True, look=batch_idx == 0)[:rows]
        # Counting waits for an accelerator, and only evaluation needs it.
        count = len(labels) if self.training else int((labels != UNLABELLED).sum())
        return Scored(self.loss(logits, labels), count, logits.argmax(dim=-1), labels)

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict tags where `word_ids` (B, T), or else `labels`, are not -100; without either at every real token."""
        probabilities = self(batch).float().softmax(dim=-1)
        words = batch["attention_mask"].bool()
        if "word_ids" in batch:
            words = batch["word_ids"] != UNLABELLED
        elif "labels" in batch:
            labelled = batch["labels"] != UNLABELLED
            words = labelled | (words & ~labelled.any(dim=1, keepdim=True))
        return {
            "labels": probabilities.argmax(dim=-1).masked_fill(~words, UNLABELLED),
            "probabilities": probabilities,
        } | ({name: batch[name] for name in _WORDS} if all(name in batch for name in _WORDS) else {})
