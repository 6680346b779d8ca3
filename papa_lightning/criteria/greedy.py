"""Criterion "greedy": a search over the loss, in rounds that each make the cheapest heads constant."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from papa_lightning.checks import whole
from papa_lightning.criteria.base import CRITERIA, RankingInputs, precision
from papa_lightning.criteria.sampled import Head, HeadTrials, SampledCriterion, batch_size
from papa_lightning.encoders import encoder_shape, find_encoder
from papa_lightning.errors import PapaError
from papa_lightning.progress import Progress
from papa_lightning.ranking import merge_ties


@CRITERIA.register("greedy")
class GreedySearch(SampledCriterion):
    """Rank heads by searching: each round takes the heads that cost least on top of those that are taken already.

        loss[l,h] = mean loss with the heads of all rounds before constant, and head h of layer l besides
        score[l,h] = round + loss[l,h] / (1 + loss[l,h]), of the round (from 0) that took the head

    The first round takes the fewest heads and each later one as many more (1 : 2 : 3 ...): 8 rounds of 144 heads take
    816 measurements, one head a round 10,440. Unlike scores of single heads it accounts for heads that can replace each
    other, but not for those of one round.

    Args:
        sequences: Number of labelled sequences of a measurement: the first ones of the batches.
        rounds: Number of rounds, at most one a head.

    Raises:
        PapaError: When one of them is below 1.

    Cost: heads x about two thirds of the rounds, each one pass over `sequences` through the layers from that of the
    head upwards; `passes` is that for 144 heads and 10,000 sequences, where the layers can be run by themselves.

    Example:
        >>> GreedySearch(rounds=0)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: rounds is 0, but must be a whole number, at least 1.
    """

    formula = "rounds of a search over the loss, see `GreedySearch`"
    needs = frozenset({"constants", "batches", "loss"})
    passes = 12.0

    def __init__(self, sequences: int = 256, rounds: int = 8) -> None:
        super().__init__(sequences)
        self.rounds = whole(1)("rounds", rounds)

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; no sequence, or a loss that is negative or not finite, is refused."""
        loss = inputs.loss
        assert loss is not None
        base = find_encoder(inputs.encoder)
        batches, scores = list(self.sample(inputs)), torch.zeros(encoder_shape(base), dtype=torch.float64)
        if not batches:
            raise PapaError("batches is empty: pass at least one labelled batch.")
        heads = [(layer, head) for layer, row in enumerate(scores) for head, _ in enumerate(row)]
        # disable=None shows the bar on a terminal only.
        total = len(batches) * measurements(len(heads), self.rounds)
        bar = Progress(total=total, desc="Greedy search", dynamic_ncols=True)

        def losses_of(chosen: Sequence[Head], left: Sequence[Head]) -> list[float]:
            sums = [0.0] * len(left)
            for batch in batches:
                trials.begin(chosen)
                loss(batch)  # what the layers give with the heads of the rounds before
                for number, head in enumerate(left):
                    trials.add(chosen, head)
                    sums[number] += float(loss(batch)) * batch_size(batch)
                    bar.update()
            return [_checked(one / sum(map(batch_size, batches))) for one in sums]

        with HeadTrials.of(inputs) as trials, bar:
            for number, taken, found in _search(heads, self.rounds, losses_of, precision(base)):
                scores[taken] = number + found / (1 + found)
        return scores

    def rounding(self, inputs: RankingInputs, scores: Tensor) -> float:
        """See :meth:`HeadCriterion.rounding`: 0, because :meth:`measure` has merged ties already."""
        return 0.0


def _checked(loss: float) -> float:
    """A mean loss, refused where heads cannot be ranked by it."""
    if not math.isfinite(loss) or loss < 0:
        raise PapaError(f"loss gave a mean of {loss}, but must be finite and not below 0: check the probe.")
    return loss


def steps(heads: int, rounds: int) -> list[int]:
    """Number of heads that each round takes, as 1 : 2 : 3 ..., in whole heads; empty rounds are left out."""
    ends = [round(heads * number * (number + 1) / (rounds * (rounds + 1))) for number in range(rounds + 1)]
    return [end - begin for begin, end in pairwise(ends) if end > begin]


def measurements(heads: int, rounds: int) -> int:
    """Number of measurements of the loss: 816 for 144 heads in 8 rounds."""
    taken = steps(heads, rounds)
    return sum(sum(taken[number:]) for number in range(len(taken)))


def _search(
    heads: Sequence[Head],
    rounds: int,
    losses_of: Callable[[Sequence[Head], Sequence[Head]], Sequence[float]],
    precision: float,
) -> Iterator[tuple[int, Head, float]]:
    """Round, head and loss of heads as they become constant; losses within `precision` of the largest are equal.

    The losses are those of constant heads with each of the others.
    """
    chosen: list[Head] = []
    left = list(heads)
    for number, step in enumerate(steps(len(heads), rounds)):
        found = losses_of(chosen, left)
        losses = dict(zip(left, merge_ties(found, precision * max(found)), strict=True))
        best = sorted(left, key=losses.__getitem__)[:step]  # stable: ties in the order of layers and heads
        yield from ((number, head, losses[head]) for head in best)
        chosen += best
        left = [head for head in left if head not in best]
