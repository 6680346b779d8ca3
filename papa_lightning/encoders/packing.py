"""Packing: the real tokens of sequences moved together, so that an encoder computes nothing for padding.

A token keeps its position id and its slot, which decide on its position embedding and on its entries of constants. A
batch has sequences of similar length, and is bounded by tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from papa_lightning.attention import slots_at
from papa_lightning.checks import boolean, whole
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.inputs import takes_images
from papa_lightning.encoders.moved import exact_when_packed, moved_tokens
from papa_lightning.encoders.position_ids import native_position_ids
from papa_lightning.encoders.seam.batch import ReadBatch
from papa_lightning.encoders.seam.layer import is_touched
from papa_lightning.encoders.seam.masks import can_look, is_true_everywhere
from papa_lightning.encoders.seam.slots import POSITIONS, GivenSlots, slots_of

#: Tokens of a batch by default: as many as keep a CPU busy, no more than 32 sequences of 48 tokens; other devices.
_ON_CPU, _ON_DEVICES = 1536, 32768
#: A batch of at least this many tokens ends where sequences get shorter than this share of its longest.
_ENOUGH, _SIMILAR = 512, 0.8


@dataclass(frozen=True)
class Packing:
    """Settings of packing.

    Args:
        enabled: Whether to pack, where that is exact.
        tokens_per_batch: Largest number of tokens in a batch, with the padding of its shorter sequences, but at least
            one sequence; None takes 1,536 on a CPU and 32,768 on other devices.

    Raises:
        PapaError: For other values.
    """

    enabled: bool = True
    tokens_per_batch: int | None = None

    def __post_init__(self) -> None:
        boolean("packing", self.enabled)
        if self.tokens_per_batch is not None:
            whole(1)("tokens_per_batch", self.tokens_per_batch)

    def tokens(self, device: torch.device) -> int:
        """The tokens of a batch on a device."""
        default = _ON_CPU if device.type == "cpu" else _ON_DEVICES
        return default if self.tokens_per_batch is None else self.tokens_per_batch

    def noted(self, device: torch.device) -> dict[str, Any]:
        """The entry of metadata: tokens of a batch on a device, or None where nothing is packed."""
        return {"packing": {"tokens_per_batch": self.tokens(device)} if self.enabled else None}


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """A batch of B sequences with n columns each, padded at the end.

    Args:
        packer: What packed it.
        tokens: Arguments of the encoder by name, (B, n, ...).
        sequences: (B,), the numbers of its sequences among those that were packed.
        index: (B, n), the number of each token among all that were packed; 0 for padding.
        mask: (B, n), true for a real token.
        columns: (B, n), the column of each token before it was packed; 0 for padding.
        slots: (B, n), the slot of each token; None for an encoder that is neither swapped nor observed.
        span: Number of slots up to that of the last token of all.
        moved: Whether a token has moved, or position ids were given: the encoder would number its tokens otherwise.
    """

    packer: Packer
    tokens: Mapping[str, Tensor]
    sequences: Tensor
    index: Tensor
    mask: Tensor
    columns: Tensor
    slots: Tensor | None
    span: int
    moved: bool

    @contextmanager
    def prepared(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """The arguments of the encoder on a device; within, its layers know the slots and places of the tokens."""
        mask, columns = self.mask.to(device), self.columns.to(device)
        given: dict[str, Any] = {name: held.to(device) for name, held in self.tokens.items()}
        given["attention_mask"] = mask.long()
        if not self.moved:
            yield {name: held for name, held in given.items() if name != "position_ids"}
            return
        positions = None
        if self.slots is not None:
            positions = GivenSlots(slots_at(self.slots.to(device), mask, self.span))
            given[POSITIONS] = positions
        with moved_tokens(self.packer.encoder, columns, mask, positions):
            yield given

    def put(self, states: Tensor, unpacked: Tensor) -> None:
        """Write states (B, n, d) of the tokens where they were before packing, in (N, T, d) of all sequences."""
        source = self.mask.flatten().nonzero().squeeze(1)
        target = (self.sequences[:, None] * unpacked.shape[1] + self.columns).flatten()[source]
        unpacked.view(-1, unpacked.shape[2]).index_copy_(0, target, states.flatten(0, 1).index_select(0, source))


@dataclass(frozen=True, eq=False)
class PackedSequences:
    """The real tokens of N sequences, one sequence after the other.

    What decides on shapes and arguments is on the CPU, so that no batch waits for the device of the tokens.

    Args:
        packer: What packed them.
        counts: (N,), tokens of each sequence; int64, on the CPU.
        moved: (N,), whether a token of a sequence stood behind padding, or position ids were given; on the CPU.
        spans: (N,), the number of slots up to that of the last token; on the CPU.
        tokens: Arguments of the encoder by name, (R, ...) for all R tokens.
        columns: (R,), the column of each token before it was packed.
        slots: (R,), the slot of each token; None for an encoder that is neither swapped nor observed.
    """

    packer: Packer
    counts: Tensor
    moved: Tensor
    spans: Tensor
    tokens: Mapping[str, Tensor]
    columns: Tensor
    slots: Tensor | None

    @classmethod
    def join(cls, parts: Sequence[PackedSequences]) -> PackedSequences:
        """Sequences of several batches of one encoder, with the same arguments, as one."""
        tokens = {name: torch.cat([part.tokens[name] for part in parts]) for name in parts[0].tokens}
        slots = [part.slots for part in parts if part.slots is not None]
        counts, moved, spans, columns = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("counts", "moved", "spans", "columns")
        )
        return cls(parts[0].packer, counts, moved, spans, tokens, columns, torch.cat(slots) if slots else None)

    def to(self, device: torch.device) -> PackedSequences:
        """The tokens on a device."""
        tokens = {name: _sent(held, device) for name, held in self.tokens.items()}
        slots = None if self.slots is None else _sent(self.slots, device)
        return replace(self, tokens=tokens, columns=_sent(self.columns, device), slots=slots)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(held.nbytes for held in (*self.tokens.values(), self.columns, self.counts))

    def groups(self, tokens: int) -> list[Tensor]:
        """The numbers of the sequences of each batch, see :func:`similar_lengths`."""
        return similar_lengths(self.counts, tokens)

    def batch(self, sequences: Tensor) -> PackedBatch:
        """The batch of some sequences, by their numbers (B,), which are on the CPU."""
        counts, device = self.counts[sequences], self.columns.device
        starts = (self.counts.cumsum(0) - self.counts)[sequences]
        order = torch.arange(max(1, int(counts.max())), device=device)
        own, first, numbers = _sent(torch.stack([counts, starts, sequences]), device).unbind()
        mask = order < own[:, None]
        index = (first[:, None] + order).where(mask, 0)
        tokens = {name: _padded(held[index], mask) for name, held in self.tokens.items()}
        slots = None if self.slots is None else _padded(self.slots[index], mask)
        columns = _padded(self.columns[index], mask)
        span, moved = int(self.spans[sequences].max()), bool(self.moved[sequences].any())
        return PackedBatch(self.packer, tokens, numbers, index, mask, columns, slots, span, moved)


def similar_lengths(counts: Tensor, tokens: int) -> list[Tensor]:
    """Batches of sequences of similar length, the longest first, from their numbers of tokens (N,).

    A batch has at most ``tokens`` tokens with its padding, but at least one sequence. Sequences of one length stay in
    their order.

    Example:
        >>> similar_lengths(torch.tensor([2, 5, 2, 4]), tokens=10)
        [tensor([1, 3]), tensor([0, 2])]
    """
    order = counts.argsort(descending=True, stable=True)
    lengths, batches, first = counts[order].clamp_min(1).tolist(), list[Tensor](), 0
    for place, length in enumerate(lengths):
        size = (place - first) * lengths[first]
        full = size + lengths[first] > tokens
        if place > first and (full or (size >= _ENOUGH and length < _SIMILAR * lengths[first])):
            batches.append(order[first:place])
            first = place
    return [*batches, order[first:]] if lengths else []


def _real_tokens(given: object) -> Tensor | None:
    """The mask (B, T), true for a real token; None without a token, or for other masks, which an encoder may refuse."""
    if not isinstance(given, Tensor) or given.dim() != 2:
        return None
    mask = given != 0
    if can_look(given) and not is_true_everywhere((given == 1) | ~mask):
        return None
    return mask if bool(mask.any()) else None


def _sent(held: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a GPU takes it from pinned memory, for which nothing waits."""
    pinned = device.type == "cuda" and held.device.type == "cpu"
    return (held.pin_memory() if pinned else held).to(device, non_blocking=pinned)


def _padded(held: Tensor, mask: Tensor) -> Tensor:
    """Entries (B, n, ...) with 0 at padding."""
    return held.masked_fill(~mask.view(*mask.shape, *[1] * (held.dim() - 2)), 0)


@dataclass(frozen=True, eq=False)
class Packer:
    """Packs batches of one encoder; made for one call, because an encoder changes.

    Args:
        encoder: The encoder, swapped or not.
        reading: The hook that reads its batches.
    """

    encoder: SupportedEncoder
    reading: ReadBatch

    @classmethod
    def of(cls, encoder: nn.Module | SupportedEncoder) -> Packer:
        """The packer of an encoder.

        Raises:
            UnsupportedEncoderError: When there is no supported encoder.
        """
        found = SupportedEncoder.find(encoder)
        return cls(found, ReadBatch.of(found))

    def pack(self, inputs: Mapping[str, Any]) -> PackedSequences | None:
        """The real tokens of a batch, or None where an encoder would compute other states for them than unpacked.

        Args:
            inputs: Arguments of the encoder by name, (B, T, ...), with an attention_mask of 0 and 1.

        Raises:
            PapaError: For position_ids that do not suit the encoder.
        """
        # A compiled encoder would be compiled anew for every shape.
        if takes_images(self.encoder.model) or self.encoder.model._compiled_call_impl is not None:
            return None
        mask = _real_tokens(inputs.get("attention_mask"))
        if mask is None:
            return None
        rises = (mask[:, 1:] > mask[:, :-1]).sum(dim=1)  # how often a real token stands behind padding
        if bool(rises.any()) and not exact_when_packed(self.encoder, holes=bool((rises + mask[:, 0] > 1).any())):
            return None
        named = {name: held for name, held in inputs.items() if name != "attention_mask"}
        if "position_ids" in self.reading.names:
            named["position_ids"] = native_position_ids(self.reading, inputs)
        columns = places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        slots = None
        if is_touched(self.encoder.modules[0]):
            found = slots_of(mask, self.reading.rule, self.reading.read(inputs, None))
            places = columns if found is None else found.places
            slots = places[mask]
        moved = torch.ones_like(rises) if inputs.get("position_ids") is not None else rises
        # Read at once, because reading makes a device wait.
        known = torch.stack([mask.sum(dim=1), moved, places.where(mask, 0).amax(dim=1) + 1]).cpu()
        tokens = {name: held[mask] for name, held in named.items()}
        return PackedSequences(self, known[0], known[1] > 0, known[2], tokens, columns[mask], slots)
