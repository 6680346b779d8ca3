"""Base of criteria that run an encoder over the same sequences again and again, each time with other constant heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention import DynamicAttention, RowMixing
from papa_lightning.attention.functional import constant_attention, gathered_attention
from papa_lightning.calibration import eval_mode
from papa_lightning.calibration.batches import checked_inputs
from papa_lightning.checks import whole
from papa_lightning.criteria.base import HeadCriterion, RankingInputs, on_device, per_layer
from papa_lightning.encoders import find_encoder, replace_mixing
from papa_lightning.encoders.replay import LayerReplay

Head = tuple[int, int]


class SampledCriterion(HeadCriterion):
    """Base of criteria that look at the first sequences of the batches; ``name:64`` looks at 64.

    Args:
        sequences: Number of sequences.

    Raises:
        PapaError: When it is no whole number from 1 on.
    """

    details = ("", "SEQUENCES")
    ordered = True

    def __init__(self, sequences: int = 256) -> None:
        self.sequences = whole(1)("sequences", sequences)

    @classmethod
    def from_detail(cls, detail: str) -> HeadCriterion | None:
        """See :meth:`HeadCriterion.from_detail`: the detail is the number of sequences."""
        if not detail:
            return cls()
        return cls(int(detail)) if detail.isascii() and detail.isdigit() and int(detail) else None

    @property
    def spec(self) -> str:
        """See :meth:`HeadCriterion.spec`."""
        return self.name if self.sequences == type(self)().sequences else f"{self.name}:{self.sequences}"

    def sample(self, inputs: RankingInputs) -> Iterator[dict[str, Any]]:
        """The batches of the sequences with a real token, checked, on the device of the encoder."""
        assert inputs.constants is not None
        assert inputs.batches is not None
        base, length = find_encoder(inputs.encoder), inputs.constants.max_length
        for number, batch in enumerate(first_sequences(inputs.batches, self.sequences)):
            real = checked_inputs(base, batch, number, length)[1].any(dim=1)
            if bool(real.all()):
                yield on_device(batch, base.device)
            elif bool(real.any()):
                rows = real.nonzero().squeeze(1)
                yield on_device({name: held[rows.to(held.device)] for name, held in batch.items()}, base.device)


@dataclass(frozen=True, eq=False)
class HeadTrials:
    """Runs of an encoder without gradients, in evaluation mode, with heads that are constant in one run or another.

    Args:
        replay: The layers below a head that is tried, which are not run again.
        heads: The heads of each layer that are constant at present.
    """

    replay: LayerReplay
    heads: Sequence[list[int]]

    @classmethod
    @contextmanager
    def of(cls, inputs: RankingInputs) -> Iterator[HeadTrials]:
        """Trials of the encoder and with the constants of a criterion's inputs."""
        base, constants = find_encoder(inputs.encoder), per_layer(inputs)
        heads: list[list[int]] = [[] for _ in constants]
        mixings = [_mixing(*own) for own in zip(heads, constants, strict=True)]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(eval_mode(base))
            found = stack.enter_context(replace_mixing(base, mixings))
            yield cls(stack.enter_context(LayerReplay(found).watching()), heads)

    def begin(self, chosen: Iterable[Head]) -> None:
        """Make these heads constant, and no others; the runs that follow are over another batch."""
        self._choose(chosen)
        self.replay.keep()

    def add(self, chosen: Sequence[Head], head: Head) -> None:
        """Make one more head constant than :meth:`begin` did; the runs that follow are over the same batch."""
        self._choose([*chosen, head])
        self.replay.reuse(head[0])

    def _choose(self, chosen: Iterable[Head]) -> None:
        for here in self.heads:
            here.clear()
        for layer, head in sorted(chosen):
            self.heads[layer].append(head)


def _mixing(heads: Sequence[int], constants: Tensor) -> RowMixing:
    """A mixing with constants (H, T, T) for the heads that a list has at the moment of each run."""

    def mix(attention: DynamicAttention, value: Tensor) -> Tensor:
        mixed, length, slots = attention.mix(value), value.shape[2], attention.slots
        if not heads:
            return mixed
        own = value[:, heads]
        if slots is None:
            fixed = constant_attention(constants[heads, :length, :length], own, attention.mask)
        else:
            fixed = gathered_attention(constants[heads], own, slots.places, slots.real)
        mixed[:, :, heads] = fixed.to(mixed.dtype)
        return mixed

    return RowMixing(mix, reads_slots=True)


def first_sequences(batches: Iterable[Mapping[str, Any]], sequences: int) -> Iterator[Mapping[str, Any]]:
    """The first batches that have so many sequences together; the last one is cut."""
    left = sequences
    for batch in batches:
        yield sliced(batch, slice(left))
        left -= batch_size(batch)
        if left <= 0:
            return


def sliced(batch: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Some sequences of a batch; entries that are None count as left out."""
    return {name: entry[rows] for name, entry in batch.items() if entry is not None}


def batch_size(batch: Mapping[str, Any]) -> int:
    """Number of sequences of a batch."""
    return len(next(entry for entry in batch.values() if entry is not None))
