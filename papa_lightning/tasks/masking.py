"""Masking tokens for masked language modelling, by the data collator of transformers."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from papa_lightning.errors import PapaError
from papa_lightning.pretrained import from_pretrained


def load_masking_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has a mask token.

    Args:
        name: Name on the hub, or local folder.

    Returns:
        The tokenizer.

    Raises:
        PapaError: If it cannot be loaded, or has no mask token.
    """
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
    """Chooses 15 % of the real tokens that are no special tokens.

    Of these 80 % become the mask token, 10 % a random one, and 10 % stay.
    Source: Devlin et al. 2019, arXiv 1810.04805.

    Args:
        tokenizer: Has a mask token.
        share: Share of the tokens that are chosen.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, share: float = 0.15) -> None:
        self.mask_token_id = int(tokenizer.mask_token_id)
        self._special = torch.tensor(sorted(tokenizer.all_special_ids))
        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)

    def mask(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mask tokens at random, by torch's random state.

        Args:
            batch: `input_ids` and `attention_mask`, (B, T).

        Returns:
            The masked tokens (B, T), and the labels (B, T): the token that stood there where one was chosen, else -100.
        """
        # The collator works on the CPU, and in place.
        ids = batch["input_ids"].cpu().clone()
        fixed = torch.isin(ids, self._special) | ~batch["attention_mask"].cpu().bool()
        masked, labels = self._collator.torch_mask_tokens(ids, fixed)
        device = batch["input_ids"].device
        return masked.to(device), labels.to(device)

    def mask_alike(self, batch: Mapping[str, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Mask tokens of each sequence by the number of its example, so that every epoch and any batches are alike.

        Args:
            batch: As for `mask`; without `example_id` (B,) the place in the data loader has to do.
            batch_idx: Number of the batch.

        Returns:
            As `mask`.
        """
        count = len(batch["input_ids"])
        places = range(batch_idx * count, (batch_idx + 1) * count)
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
