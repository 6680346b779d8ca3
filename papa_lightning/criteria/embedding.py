"""Criterion "embedding": change of the embedding of a sentence when one head is constant."""

import torch
import torch.nn.functional as F
from torch import Tensor

from papa_lightning.criteria.base import CRITERIA, RankingInputs, precision
from papa_lightning.criteria.sampled import HeadTrials, SampledCriterion
from papa_lightning.encoders import encoder_shape, find_encoder
from papa_lightning.errors import PapaError
from papa_lightning.progress import Progress
from papa_lightning.ranking import merge_ties


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
