"""Masked language modelling."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from papa_lightning.checks import drop_fixed
from papa_lightning.encoders.loading import from_pretrained, vocabulary_size
from papa_lightning.errors import PapaError
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.metrics import LogitPerplexity
from papa_lightning.tasks.probes import TokenProbe
from papa_lightning.tasks.scores import UNLABELLED, Scored


def load_masking_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a mask token, by its name on the hub or from a folder."""
    try:
        tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, name)
    except PapaError:
        raise
    except Exception as error:  # the hub, the file readers and the tokenizers raise errors of their own
        raise PapaError(
            f"tokenizer {name!r} cannot be loaded: pass the name of a tokenizer on the hub (downloaded before, when "
            f"offline) or a folder that holds one. transformers says: {error}"
        ) from error
    if tokenizer.mask_token_id is None:
        raise PapaError(
            f"tokenizer {name!r} has no mask token, without which nothing can be masked: pass one that has, usually "
            "that of the encoder."
        )
    return tokenizer


class TokenMasker:
    """Chooses a share of the real tokens: 80 % are masked, 10 % random, 10 % kept (Devlin et al., arXiv 1810.04805)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, share: float = 0.15) -> None:
        self.mask_token_id = int(tokenizer.mask_token_id)
        self._special = torch.tensor(sorted(tokenizer.all_special_ids))
        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)
        self._ends: dict[int, int] = {}  # of each batch of a loader: the place after its last row

    def mask(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mask tokens at random, by torch's random state: (B, T), and labels (B, T), the chosen tokens or -100."""
        # The collator works on the CPU, and in place.
        ids = batch["input_ids"].cpu().clone()
        fixed = torch.isin(ids, self._special) | ~batch["attention_mask"].cpu().bool()
        masked, labels = self._collator.torch_mask_tokens(ids, fixed)
        return masked.to(batch["input_ids"].device), labels.to(batch["input_ids"].device)

    def mask_alike(self, batch: Mapping[str, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """As `mask`, but by `example_id` or place in the data loader: the same in every epoch and in any batches."""
        count = len(batch["input_ids"])
        start = self._ends.get(batch_idx - 1, batch_idx * count)  # the batches before may have other sizes
        places = range(start, start + count)
        self._ends[batch_idx] = places.stop
        numbers = batch["example_id"].tolist() if "example_id" in batch else places
        rows = []
        try:
            for row, number in enumerate(numbers):
                self._collator.generator = torch.Generator().manual_seed(int(number))
                rows.append(self.mask({name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")}))
        finally:
            self._collator.generator = None
        masked, labels = zip(*rows, strict=True)
        return torch.cat(masked), torch.cat(labels)


_METRICS = ("accuracy", "perplexity")


class MaskedLanguageModelingTask(EncoderTask):
    """Predict masked tokens with a `TokenProbe` whose classes are the vocabulary.

    Works on the batches of any text datamodule: labels are not read, and tokens are masked here, by `TokenMasker`.
    Training masks anew at every step. Validation and test mask each example by its `example_id`, so that the scores of
    epochs, and of runs with any number of processes, compare. Calibration sees the text unmasked.

    Logged are ``accuracy`` (the score) and ``perplexity``, both at the chosen tokens only; 1 is the best perplexity,
    the size of the vocabulary that of guessing. A prediction fills in the mask tokens that the text has: `labels`
    (B, T), -100 elsewhere, and `probabilities` (B, T) of what is filled in.

    Args:
        encoder: As for `EncoderTask`.
        max_length: T.
        tokenizer: Name on the hub, or local folder; None takes the encoder's.
        mask_share: Share of the real tokens that are chosen.
        kwargs: The other ones of `EncoderTask`, but not `num_labels`, `metrics` and `label_names`, which are fixed.

    Raises:
        PapaError: See `EncoderTask`; also if the tokenizer cannot be loaded or has no mask token.
    """

    needs_labels = False
    """Whether the data module must have labels."""

    def __init__(
        self, encoder: str, max_length: int = 64, tokenizer: str | None = None, mask_share: float = 0.15, **kwargs: Any
    ) -> None:
        if not 0 < mask_share < 1:
            raise PapaError(f"mask_share is {mask_share!r}: pass a value that is a share above 0 and below 1.")
        vocabulary = vocabulary_size(encoder)
        drop_fixed(kwargs, "masked language modelling", num_labels=vocabulary, metrics=_METRICS, label_names=None)
        super().__init__(
            encoder=encoder, num_labels=vocabulary, max_length=max_length, metrics=_METRICS, label_names=None, **kwargs
        )
        self._tokenizer = load_masking_tokenizer(encoder if tokenizer is None else tokenizer)
        self._masker = TokenMasker(self._tokenizer, mask_share)

    def configure_probe(self) -> nn.Module:
        """Build a `TokenProbe` for all levels of the encoder and all tokens of its vocabulary."""
        return TokenProbe(self.num_levels, **self.probe_sizes)

    def configure_metrics(self) -> MetricCollection:
        """Build accuracy and perplexity, which take logits (N, V) and tokens (N,)."""
        accuracy = MulticlassAccuracy(num_classes=self.hparams["num_labels"], average="micro")
        return MetricCollection({"accuracy": accuracy, "perplexity": LogitPerplexity()})

    @cached_property
    def label_names(self) -> Sequence[str]:
        """The tokens by number."""
        known = range(min(self.hparams["num_labels"], len(self._tokenizer)))
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(list(known))]

    def score(self, batch: Mapping[str, Tensor], batch_idx: int, rows: int | None = None) -> Scored:
        """Mask a batch, and compute loss, logits (N, V) and tokens (N,) of chosen tokens; see `EncoderTask.score`."""
        masked, labels = self._masker.mask(batch) if self.training else self._masker.mask_alike(batch, batch_idx)
        levels = self.encode({**batch, "input_ids": masked})
        labels[len(labels) if rows is None else rows :] = UNLABELLED
        chosen = labels != UNLABELLED
        # Logits of the chosen tokens only, because the vocabulary is large.
        logits, targets = self.probe([level[chosen] for level in levels]), labels[chosen]
        return Scored(self.loss(logits, targets), len(targets), logits.detach(), targets)

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fill in the mask tokens of a batch: `labels` (B, T), -100 elsewhere, and `probabilities` (B, T)."""
        asked = batch["input_ids"] == self._masker.mask_token_id
        best, tokens = self.probe([level[asked] for level in self.encode(batch)]).float().softmax(dim=-1).max(dim=-1)
        labels = batch["input_ids"].new_full(asked.shape, UNLABELLED).masked_scatter(asked, tokens)
        return {"labels": labels, "probabilities": best.new_zeros(asked.shape).masked_scatter(asked, best)}
