"""Embeddings of texts: one vector of the hidden states of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.calibration.collect import eval_mode
from papa_lightning.checks import boolean, check_choice, maybe
from papa_lightning.encoders import (
    PackedSequences,
    Packer,
    Packing,
    accepted_inputs,
    compute_device,
    find_encoder,
)
from papa_lightning.encoders.sentence_files import Pooling, SentenceFiles, read_sentence_files
from papa_lightning.errors import PapaError, UnsupportedEncoderError

EmbeddingPooling: TypeAlias = Pooling
"""Vector of a text: the mean over its tokens, or that of its first or last token."""

#: Bytes of tokens that are packed together, from as many batches as they take.
_POOL = 2**24


def pool(pooling: EmbeddingPooling, hidden: Tensor, mask: Tensor) -> Tensor:
    """One vector for each sequence.

    Args:
        pooling: ``"mean"``: the mean over the real tokens, 0 without any. ``"class_token"`` and ``"last_token"``: the
            hidden state of the first and of the last real token.
        hidden: Hidden states (B, T, d).
        mask: (B, T), not 0 for a real token; it may have holes, and padding in front.

    Returns:
        (B, d).

    Raises:
        PapaError: For another pooling.

    Example:
        >>> hidden, mask = torch.tensor([[[1.0], [2.0], [6.0], [9.0]]]), torch.tensor([[0, 1, 1, 0]])
        >>> [pool(pooling, hidden, mask).item() for pooling in ("mean", "class_token", "last_token")]
        [4.0, 2.0, 6.0]
    """
    check_choice("pooling", pooling, get_args(EmbeddingPooling))
    real = mask != 0
    if pooling == "mean":
        weights = real.to(hidden.dtype)
        return torch.einsum("bt,btd->bd", weights, hidden) / weights.sum(dim=1, keepdim=True).clamp_min(1)
    found = real.int() if pooling == "class_token" else real.int().cumsum(dim=1)
    places = found.argmax(dim=1)  # the first of the largest
    return hidden.take_along_dim(places[:, None, None], dim=1).squeeze(1)


@dataclass(frozen=True)
class EmbeddingSettings:
    """Settings of embeddings.

    Args:
        pooling: The vector of a text, see :func:`pool`; None: as the folder of the encoder says.
        normalize: Whether vectors have the length 1; None: as the folder of the encoder says.

    Raises:
        PapaError: For other values.
    """

    pooling: EmbeddingPooling | None = None
    normalize: bool | None = None

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, (None, *get_args(EmbeddingPooling)))
        maybe(boolean)("normalize", self.normalize)

    def of(self, encoder: str) -> EmbeddingSettings:
        """The settings for an encoder, without None.

        What is None is read from the sentence-transformers files of the encoder's folder; without such files it is the
        mean, normalised.

        Args:
            encoder: Folder of the encoder, or its name on the hub.

        Raises:
            PapaError: When the files cannot be read, or name a pooling that is not known.
        """
        if self.pooling is not None and self.normalize is not None:
            return self
        files = read_sentence_files(encoder) or SentenceFiles()
        normalize = files.normalize if self.normalize is None else self.normalize
        return EmbeddingSettings(self.pooling or files.pooling, normalize)


class Embedder:
    """Embeddings by an encoder, with the attention that it has at the moment of a call.

    An encoder in evaluation mode runs over the real tokens alone, where that gives the same hidden states.

    Args:
        encoder: The encoder, or a module that holds one.
        pooling: The vector of a text, see :func:`pool`.
        normalize: Whether vectors have the length 1.
        packing: Settings of packing; None for the defaults.

    Raises:
        PapaError: For another pooling.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        >>> embedder = Embedder(BertModel(BertConfig(vocab_size=30, **sizes)))
        >>> batch = {"input_ids": torch.ones(3, 8, dtype=torch.long), "attention_mask": torch.ones(3, 8)}
        >>> embedder.embed_rows([batch, batch]).shape
        torch.Size([6, 16])
    """

    def __init__(
        self,
        encoder: nn.Module,
        pooling: EmbeddingPooling = "mean",
        normalize: bool = True,
        packing: Packing | None = None,
    ) -> None:
        EmbeddingSettings(pooling, normalize)  # refuses what is neither
        self.pooling, self.normalize, self.packing = pooling, normalize, packing or Packing()
        self.encoder = encoder
        with suppress(UnsupportedEncoderError):
            self.encoder = find_encoder(encoder)
        # torch.compile keeps the encoder under this name in what it returns, which is to run.
        self._compiled = encoder if hasattr(encoder, "_orig_mod") else None
        if not isinstance(self.encoder, PreTrainedModel):
            raise PapaError(f"encoder is a {type(encoder).__name__}: pass a PreTrainedModel of transformers.")
        self._inputs = accepted_inputs(self.encoder)

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """The embeddings of a batch, through which gradients flow where they are enabled.

        Args:
            batch: `input_ids`, `attention_mask` and what else the encoder reads, (B, T); other entries are not read.

        Returns:
            (B, d), on the device of the encoder, in float32 or, for an encoder in it, float64.
        """
        inputs = self._inputs_of(batch)
        packed = self._pack(inputs)
        if packed is None:
            device = compute_device(self.encoder)
            inputs = {name: held.to(device) for name, held in inputs.items()}
            return self._pooled(inputs, inputs["attention_mask"])
        # Gradients are of one run.
        learns = torch.is_grad_enabled() and any(one.requires_grad for one in self.encoder.parameters())
        return self._run(packed, [torch.arange(len(packed.counts))] if learns else None)

    def embed_rows(self, batches: Iterable[Mapping[str, Any]]) -> Tensor:
        """The embeddings of all rows, in evaluation mode and without gradients.

        Args:
            batches: As for :meth:`embed`. Sequences of similar length run together, whatever batch they are of.

        Returns:
            (N, d), float32, on the CPU, in the order of the rows.

        Raises:
            PapaError: Without any row, or when an embedding is not finite.
        """
        with torch.no_grad(), eval_mode(self.encoder):
            parts = [part.float().cpu() for part in self._parts(batches)]
        if not parts:
            raise PapaError("batches is empty: pass at least one batch of texts.")
        found = torch.cat(parts)
        if not bool(found.isfinite().all()):
            row = int((~found.isfinite().all(dim=1)).nonzero()[0])
            raise PapaError(
                f"the encoder gives an embedding of row {row} that is NaN or infinite: look at its weights and "
                "constants, or load it in 32-bit precision."
            )
        return found

    def _parts(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
        """The embeddings of batches, in the order of their rows."""
        pool, nbytes = list[PackedSequences](), 0

        def emptied() -> Iterator[Tensor]:
            if pool:
                yield self._run(PackedSequences.join(pool), None)
                pool.clear()

        for batch in batches:
            packed = self._pack(self._inputs_of(batch))
            if packed is None or (pool and pool[0].tokens.keys() != packed.tokens.keys()):
                yield from emptied()
            if packed is None:
                yield self.embed(batch)
                continue
            nbytes = packed.nbytes + (nbytes if pool else 0)
            pool.append(packed)
            if nbytes >= _POOL:
                yield from emptied()
        yield from emptied()

    def _inputs_of(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        missing = [name for name in ("input_ids", "attention_mask") if name not in batch]
        if missing:
            raise PapaError(
                f"batch has no {missing[0]}; its entries are {', '.join(map(str, batch))}: pass what a tokenizer of "
                "transformers makes, with padding=True and return_tensors='pt'."
            )
        return {name: batch[name] for name in self._inputs if name in batch}

    def _pack(self, inputs: Mapping[str, Tensor]) -> PackedSequences | None:
        """The real tokens of the encoder's inputs; None where it is to run over these as they are."""
        compiled = self._compiled is not None or torch.compiler.is_compiling()
        if not self.packing.enabled or self.encoder.training or compiled:
            return None
        with suppress(UnsupportedEncoderError):
            return Packer.of(self.encoder).pack(inputs)
        return None

    def _run(self, packed: PackedSequences, groups: list[Tensor] | None) -> Tensor:
        """The embeddings of packed sequences, in their order; in groups of similar length by default."""
        device = compute_device(self.encoder)
        groups = packed.groups(self.packing.tokens(device)) if groups is None else groups
        moved, found = packed.to(device), list[Tensor]()
        for group in groups:
            part = moved.batch(group)
            with part.prepared(device) as arguments:
                found.append(self._pooled(arguments, part.mask))
        order = torch.cat(groups).argsort()
        return torch.cat(found)[order.to(device)]

    def _pooled(self, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        hidden = (self._compiled or self.encoder)(**inputs, return_dict=True).last_hidden_state
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        vectors = pool(self.pooling, hidden, mask.to(hidden.device))
        return F.normalize(vectors, dim=-1) if self.normalize else vectors
