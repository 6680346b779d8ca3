"""Criterion "greedy": a search over the loss, in rounds that each make the cheapest heads constant."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention.functional import apply_attention, constant_attention
from papa_lightning.calibration import eval_mode
from papa_lightning.calibration.batches import checked_inputs
from papa_lightning.checks import whole
from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs, on_device, per_layer, precision
from papa_lightning.encoders import find_encoder, replace_mixing
from papa_lightning.errors import PapaError
from papa_lightning.progress import Progress
from papa_lightning.ranking import merge_ties

Head = tuple[int, int]


@CRITERIA.register("greedy")
class GreedySearch(HeadCriterion):
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

    Cost: heads x about two thirds of the rounds x `sequences`, with explicit attention matrices; `passes` is that for
    144 heads and 10,000 sequences.

    Example:
        >>> GreedySearch(rounds=0)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: rounds is 0, but must be a whole number, at least 1.
    """

    formula = "rounds of a search over the loss, see `GreedySearch`"
    needs = frozenset({"constants", "batches", "loss"})
    passes = 21.0

    def __init__(self, sequences: int = 256, rounds: int = 8) -> None:
        self.sequences, self.rounds = whole(1)("sequences", sequences), whole(1)("rounds", rounds)

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; no sequence, or a loss that is negative or not finite, is refused."""
        loss = inputs.loss
        assert loss is not None
        assert inputs.batches is not None
        base, constants = find_encoder(inputs.encoder), per_layer(inputs)
        batches: list[Mapping[str, Any]] = []  # kept on the device of the encoder for many measurements
        for number, batch in enumerate(first_sequences(inputs.batches, self.sequences)):
            checked_inputs(base, batch, number, constants[0].shape[-1])
            batches.append(on_device(batch, base.device))
        if not batches:
            raise PapaError("batches is empty: pass at least one labelled batch.")
        scores = torch.zeros(len(constants), len(constants[0]), dtype=torch.float64)
        heads = [(layer, head) for layer, row in enumerate(scores) for head, _ in enumerate(row)]
        own: list[list[int]] = [[] for _ in constants]  # of each layer, the heads that are constant at present

        def loss_of(chosen: Sequence[Head]) -> float:
            for layer, here in enumerate(own):
                here[:] = sorted(head for other, head in chosen if other == layer)
            mean = sum(float(loss(batch)) * _size(batch) for batch in batches) / sum(map(_size, batches))
            if not math.isfinite(mean) or mean < 0:
                raise PapaError(f"loss gave a mean of {mean}, but must be finite and not below 0: check the probe.")
            return mean

        mixings = [partial(_mix, here, values) for here, values in zip(own, constants, strict=True)]
        with torch.no_grad(), eval_mode(base), replace_mixing(base, mixings):
            for number, head, found in _search(heads, self.rounds, loss_of, precision(base)):
                scores[head] = number + found / (1 + found)
        return scores

    def rounding(self, inputs: RankingInputs, scores: Tensor) -> float:
        """See :meth:`HeadCriterion.rounding`: 0, because :meth:`measure` has merged ties already."""
        return 0.0


def _mix(heads: list[int], constants: Tensor, attention: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Mix the values of one layer, with some heads constant."""
    mixed, length = apply_attention(attention, value), value.shape[2]
    if heads:
        chosen = constants[heads, :length, :length]
        mixed[:, :, heads] = constant_attention(chosen, value[:, heads], mask).to(mixed.dtype)
    return mixed


def steps(heads: int, rounds: int) -> list[int]:
    """Number of heads that each round takes, as 1 : 2 : 3 ..., in whole heads; empty rounds are left out."""
    ends = [round(heads * number * (number + 1) / (rounds * (rounds + 1))) for number in range(rounds + 1)]
    return [end - begin for begin, end in pairwise(ends) if end > begin]


def measurements(heads: int, rounds: int) -> int:
    """Number of measurements of the loss: 816 for 144 heads in 8 rounds."""
    taken = steps(heads, rounds)
    return sum(sum(taken[number:]) for number in range(len(taken)))


def first_sequences(batches: Iterable[Mapping[str, Any]], sequences: int) -> Iterator[Mapping[str, Any]]:
    """The first batches that have so many sequences together; the last one is cut."""
    left = sequences
    for batch in batches:
        yield {name: entry[:left] for name, entry in batch.items()}
        left -= _size(batch)
        if left <= 0:
            return


def _search(
    heads: Sequence[Head], rounds: int, loss_of: Callable[[Sequence[Head]], float], precision: float
) -> Iterator[tuple[int, Head, float]]:
    """Round, head and loss of heads as they become constant; losses within `precision` of the largest are equal."""
    chosen: list[Head] = []
    left = list(heads)
    # disable=None shows the bar on a terminal only.
    with Progress(total=measurements(len(left), rounds), desc="Greedy search", dynamic_ncols=True) as bar:
        for number, step in enumerate(steps(len(heads), rounds)):
            found = []
            for head in left:
                found.append(loss_of([*chosen, head]))
                bar.update()
            losses = dict(zip(left, merge_ties(found, precision * max(found)), strict=True))
            best = sorted(left, key=losses.__getitem__)[:step]  # stable: ties in the order of layers and heads
            yield from ((number, head, losses[head]) for head in best)
            chosen += best
            left = [head for head in left if head not in best]


def _size(batch: Mapping[str, Any]) -> int:
    return len(next(iter(batch.values())))
