"""Criterion "embedding", and the change of embeddings as the loss of other criteria."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papa_lightning.calibration import AttentionConstants, eval_mode
from papa_lightning.criteria.base import CRITERIA, RankingInputs, criterion_from, on_device, precision
from papa_lightning.criteria.sampled import HeadTrials, SampledCriterion, batch_size, sliced
from papa_lightning.encoders import Packing, dynamic_attention_of, encoder_shape, find_encoder
from papa_lightning.errors import PapaError
from papa_lightning.progress import Progress
from papa_lightning.ranking import merge_ties

#: Entry of a batch: the embeddings (B, d) of its sentences with all heads dynamic.
_TARGET = "papa_embeddings"
#: Sentences whose embeddings are made at once.
_READ = 256


@CRITERIA.register("embedding")
class EmbeddingChange(SampledCriterion):
    """Change of the direction of a sentence's embedding when one head alone becomes constant.

        score[l,h] = mean over sentences of 1 - cos(e, e_lh)

    of the embeddings e with all heads dynamic and e_lh with head h of layer l constant. That is half the mean squared
    distance of the embeddings divided by their norms, and is computed so, for small changes. It needs no labels.

    Args:
        sequences: Number of sentences: the first ones of the batches.

    Raises:
        PapaError: When it is below 1.

    Cost: for each head, one pass over `sequences` through the layers from its own upwards; `passes` is that for 72
    heads in 6 layers and 10,000 sentences.
    """

    formula = "mean over sentences of 1 - cos of the embeddings with the head dynamic and constant"
    needs = frozenset({"constants", "batches", "embed"})
    passes = 0.6

    def __init__(self, sequences: int = 128) -> None:
        super().__init__(sequences)

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; batches without a real token are refused."""
        embed = inputs.embed
        assert embed is not None
        base = find_encoder(inputs.encoder)
        batches, (layers, heads) = list(self.sample(inputs)), encoder_shape(base)
        if not batches:
            raise PapaError("batches has no real token: pass at least one batch whose attention_mask has ones.")
        squares, number = torch.zeros(layers, heads, dtype=torch.float64), 0
        # disable=None shows the bar on a terminal only.
        bar = Progress(total=len(batches) * layers * heads, desc="Embeddings", dynamic_ncols=True)
        with HeadTrials.of(inputs) as trials, bar:
            for batch in batches:
                trials.begin([])
                original = directions(embed(batch))
                number += len(original)
                for layer, head in torch.cartesian_prod(torch.arange(layers), torch.arange(heads)).tolist():
                    trials.add([], (layer, head))
                    squares[layer, head] += float((directions(embed(batch)) - original).square().sum())
                    bar.update()
        distances = (squares / number).sqrt()  # rounding is that of a distance, however small it is
        merged = merge_ties(distances.flatten().tolist(), precision(base))
        return torch.tensor(merged, dtype=torch.float64).view(layers, heads).square() / 2

    def rounding(self, inputs: RankingInputs, scores: Tensor) -> float:
        """See :meth:`HeadCriterion.rounding`: 0, because :meth:`measure` has merged ties already."""
        return 0.0


def directions(embeddings: Tensor) -> Tensor:
    """Embeddings (B, d) divided by their norms, in float64."""
    return F.normalize(embeddings.double(), dim=1)


@dataclass(frozen=True, eq=False)
class _Targets:
    """Batches with the embeddings of their sentences by an encoder with all heads dynamic."""

    encoder: nn.Module
    batches: Iterable[Mapping[str, Any]]
    embed: Callable[[Mapping[str, Any]], Tensor]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        base = find_encoder(self.encoder)
        for batch in self.batches:
            for start in range(0, batch_size(batch), _READ):  # a criterion that looks at few reads no more
                part = on_device(sliced(batch, slice(start, start + _READ)), base.device)
                with torch.no_grad(), eval_mode(base), dynamic_attention_of(base):
                    targets = directions(self.embed(part))
                yield {**part, _TARGET: targets}


def embedding_inputs(
    encoder: nn.Module,
    constants: AttentionConstants | None,
    batches: Iterable[Mapping[str, Any]],
    embed: Callable[[Mapping[str, Any]], Tensor],
    packing: Packing | None = None,
) -> RankingInputs:
    """Inputs of criteria for an encoder that is there for its embeddings, without a task that was trained.

    The loss is the change of the embeddings, the mean over sentences of 1 - cos(e, e'), from those with all heads
    dynamic, which each iteration over the batches computes anew.

    Args:
        encoder: The encoder, swapped or not.
        constants: Constants of this encoder.
        batches: Sentences, as for :func:`~papa_lightning.calibrate`.
        embed: Function of a batch that returns the embeddings (B, d), such as
            :meth:`Embedder.embed <papa_lightning.embeddings.Embedder.embed>`.
        packing: Settings of packing.

    Example:
        >>> from papa_lightning import calibrate
        >>> from papa_lightning.criteria import rank_heads
        >>> from papa_lightning.embeddings import Embedder
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> encoder, tokens = BertModel(config), torch.arange(48).view(8, 6)
        >>> batches = [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}]
        >>> constants = calibrate(encoder, batches, max_length=6)
        >>> inputs = embedding_inputs(encoder, constants, batches, Embedder(encoder).embed)
        >>> sorted(rank_heads("greedy", inputs).heads)
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """

    def change(batch: Mapping[str, Any]) -> Tensor:
        target: Tensor = batch[_TARGET]
        return (directions(embed(batch)) - target).square().sum(dim=1).mean() / 2

    targets = _Targets(encoder, batches, embed)
    return RankingInputs(encoder, constants, targets, change, packing=packing, embed=embed)


def check_for_embeddings(criterion: str) -> None:
    """Refuse a criterion that asks a trained probe, which embeddings do without; the message names others."""
    if not criterion_from(criterion).needs_probe:
        return
    others = [name for name, own in CRITERIA.items() if not own.needs_probe]
    raise PapaError(
        f"criterion is {criterion!r}, which asks the loss of a trained probe, but embeddings have no probe, and their "
        f"change has no slope where all heads are dynamic: choose from {', '.join(others)}."
    )
