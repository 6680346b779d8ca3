"""The slots of the tokens of a batch: from its position ids, or by the rule of its family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from papa_lightning.attention import Reach, Slots, slots_at, slots_from_first
from papa_lightning.encoders.seam.masks import can_look, is_true_everywhere
from papa_lightning.errors import PapaError

#: Place from which slots are counted, see :class:`~papa_lightning.encoders.EncoderFamily`.
SlotRule: TypeAlias = Literal["tensor", "mask", "input_ids"]

#: Keyword argument that carries the positions from an encoder to its attention modules.
POSITIONS = "papa_positions"


@dataclass(frozen=True, eq=False)
class GivenSlots:
    """The slots by the position ids of a batch, for its layers; None where they are the places in the tensor."""

    slots: Slots | None


@dataclass(frozen=True, eq=False)
class NumberedTokens:
    """The tokens (B, T) that an encoder numbers by its input ids, true for any but padding, for its layers."""

    tokens: Tensor


#: Positions that are passed with a call.
Positions: TypeAlias = GivenSlots | NumberedTokens


def slots_of(mask: Tensor | None, rule: SlotRule, positions: Positions | None = None) -> Slots | None:
    """The slots of the tokens of a batch with a mask (B, T), or None where they are known to be the places."""
    if isinstance(positions, GivenSlots):
        return positions.slots
    if mask is None or rule == "tensor" or (rule == "input_ids" and positions is None):
        return None
    real = mask.bool()
    numbered = real if positions is None else real | positions.tokens
    if can_look(numbered) and is_true_everywhere(numbered[:, :1]):
        return None
    return slots_from_first(real, numbered)


@dataclass(frozen=True)
class PositionRule:
    """Conditions for position ids to be slots: the id of the first (RoBERTa: ``padding_idx + 1``), T, and reaches."""

    first: int
    length: int | None
    reaches: Sequence[Reach]

    def read(self, position_ids: Tensor, mask: Tensor) -> GivenSlots:
        """The slots ``position id - first`` by ids (B, T) or (1, T); those of padding (mask (B, T) false) are free."""
        places = (self._checked(position_ids, mask) - self.first).expand_as(mask)
        if torch.compiler.is_compiling():  # values cannot be read in a graph
            if self.length is None:
                raise PapaError(
                    "position_ids are given while the attention of a compiled encoder is observed, where they cannot "
                    "be checked: observe the encoder before it is compiled, or leave position_ids out."
                )
            return GivenSlots(slots_at(places, mask, self.length))
        order = torch.arange(mask.shape[1], device=mask.device)
        shift = places - order
        lowest, highest, moved, jumps, repeats, falls = torch.stack(
            [
                places.where(mask, places.new_tensor(2**31)).min(),
                places.where(mask, -1).max(),
                ((shift != 0) & mask).any().long(),
                (shift.where(mask, -(2**31)).amax(1) > shift.where(mask, 2**31).amin(1)).any().long(),
                _repeats(places, mask).long(),
                _falls(places, mask).long(),
            ]
        ).tolist()  # all at once, because reading makes a device wait
        if highest < 0 and lowest >= 2**31:
            return GivenSlots(None)
        self._refuse(lowest, highest, bool(jumps), bool(repeats), bool(falls))
        return GivenSlots(slots_at(places, mask, highest + 1) if moved else None)

    def _checked(self, position_ids: object, mask: Tensor) -> Tensor:
        if not isinstance(position_ids, Tensor) or position_ids.dtype not in (torch.int64, torch.int32):
            found = position_ids.dtype if isinstance(position_ids, Tensor) else type(position_ids).__name__
            raise PapaError(f"position_ids is of {found}, but must be a tensor of whole numbers (torch.int64).")
        # Number by number, because a graph finds no shape with symbols among others. A comparison with 1 is a guard.
        if position_ids.dim() != 2 or not (
            position_ids.shape[1] == mask.shape[1]
            and (position_ids.shape[0] == mask.shape[0] or position_ids.shape[0] == 1)
        ):
            raise PapaError(
                f"position_ids has shape {tuple(position_ids.shape)}, but the batch has {tuple(mask.shape)} tokens: "
                "pass one of shape (batch, length) or (1, length)."
            )
        return position_ids.to(mask.device, torch.int64)

    def _refuse(self, lowest: int, highest: int, jumps: bool, repeats: bool, falls: bool) -> None:
        last = None if self.length is None else self.length - 1
        if lowest < 0 or (last is not None and highest > last):
            wrong = lowest if lowest < 0 else highest
            until = "" if last is None else f" to {self.first + last}, those of max_length {self.length}"
            raise PapaError(
                f"position_ids has the value {wrong + self.first} at a real token, but the slots of the constants have "
                f"the ids {self.first}{until or ' on'}: leave position_ids out, pass ids in this range, or calibrate "
                "with a larger max_length."
            )
        if repeats:
            raise PapaError(
                "position_ids has the same value twice in one sequence, as when several texts share a row, but every "
                "real token has a slot of its own in the constants: pass each text as a sequence of its own."
            )
        limited = [reach for reach in self.reaches if not reach.unlimited]
        windows = any(reach.before is not None or reach.after != 0 for reach in limited)
        if limited and (falls or (windows and jumps)):
            raise PapaError(
                f"position_ids {'fall' if falls else 'skip values'} within a sequence, but the encoder has layers that "
                f"look {'as far as a window' if windows else 'back only'}, by the order of the tokens: pass ids that "
                f"rise {'by one a token' if windows else 'from token to token'}."
            )


def _repeats(places: Tensor, mask: Tensor) -> Tensor:
    """Whether two real tokens of a sequence have the same place."""
    others = -1 - torch.arange(mask.shape[1], device=mask.device) - places.abs().max()  # padding equals nothing
    ordered = places.where(mask, others).sort(dim=1).values
    return (ordered[:, 1:] == ordered[:, :-1]).any()


def _falls(places: Tensor, mask: Tensor) -> Tensor:
    """Whether a real token of a sequence stands before an earlier one."""
    highest = places.where(mask, -(2**31)).cummax(dim=1).values
    return ((places[:, 1:] < highest[:, :-1]) & mask[:, 1:]).any()
