"""Layouts: the assignment of the tokens of a text to the T slots of a padded row.

A layout is a list of *slots*: entry t is the index of the token that slot t takes, or `PADDING`; masks may have holes.
The segment-aligned one fixes separators, so that averages of attention mean something (arXiv 2211.03495).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor
from torch.utils.data import default_collate

from papa_lightning.errors import DataError

Layout = Literal["segment", "plain"]
"""Layout of a row: `"segment"` aligned, or `"plain"` padding at the end."""

Preset = Literal["default", "reference"]
"""`"reference"` repeats the published code, `"default"` departs from it where that is better."""

Padding = Literal["max_length", "longest"]
"""Length of the rows of a batch: T slots, or as many as the longest row needs."""

PADDING = -1
"""Entry of an empty slot."""


def plain_slots(length: int, max_length: int) -> list[int]:
    """Slots of n tokens, with padding at the end: slot t takes token t for t < min(n, T)."""
    kept = min(length, max_length)
    return [*range(kept), *[PADDING] * (max_length - kept)]


def token_slots(input_ids: Sequence[int], separator_id: int, max_length: int) -> list[int]:
    """Slots of one segment, or words: slot t takes token t for t < min(e, T-1), slot T-1 the final separator e."""
    final = _final_separator(input_ids, separator_id)
    kept = min(final, max_length - 1)
    return [*range(kept), *[PADDING] * (max_length - 1 - kept), final]


def segment_slots(
    input_ids: Sequence[int], separator_id: int, max_length: int, preset: Preset = "default"
) -> list[int]:
    """Slots of aligned segments: the first at slot 0, the second at T//2, the final separator at T-1.

    With s the index of the first separator, e that of the last one and m = T//2:
    slot t     takes token t      for t < min(s, m)                  (a longer first segment is cut),
    slot m + i takes token s + i  for s + i < e and m + i < T-1      (a longer second segment is cut),
    slot T-1   takes token e.
    The second line includes the separators between the segments: one (BERT) or two (RoBERTa).
    A single segment has s = e: "reference" then keeps min(s, m) tokens before it, "default" min(s, T-1) tokens, as
    `token_slots` does. Pairs are the same in both presets.

    Example:
        >>> segment_slots([101, 7, 8, 102, 9, 102], separator_id=102, max_length=10)  # CLS x x SEP x SEP
        [0, 1, 2, -1, -1, 3, 4, -1, -1, 5]
    """
    final = _final_separator(input_ids, separator_id)
    first, middle = list(input_ids).index(separator_id), max_length // 2
    if first == final and preset == "default":
        return token_slots(input_ids, separator_id, max_length)
    left = range(min(first, middle))
    right = range(first, min(final, first + max_length - 1 - middle))
    gap_left, gap_right = middle - len(left), max_length - 1 - middle - len(right)
    return [*left, *[PADDING] * gap_left, *right, *[PADDING] * gap_right, final]


def place(column: Sequence[int], slots: Sequence[int], fill: int) -> list[int]:
    """Place one value per token into the slots; `fill` stands where a slot takes no token."""
    return [fill if index == PADDING else column[index] for index in slots]


def mask_of(slots: Sequence[int]) -> list[int]:
    """The attention mask: 1 where a slot takes a token, 0 at padding."""
    return [int(index != PADDING) for index in slots]


def check_padding(padding: Padding, layout: Layout) -> None:
    """Refuse to cut padding that is not at the end of the rows."""
    if padding == "longest" and layout != "plain":
        raise DataError(
            f"padding is 'longest', but layout={layout!r} puts the last separator on the last of max_length "
            'slots: pass layout="plain", or padding="max_length".'
        )


def cut_padding(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Collate rows of T slots with padding at the end into a batch, (B, longest), as long as its longest row."""
    batch = default_collate(list(rows))
    longest = int(batch["attention_mask"].sum(dim=1).max())
    return {name: values[:, :longest] if values.dim() == 2 else values for name, values in batch.items()}


def _final_separator(input_ids: Sequence[int], separator_id: int) -> int:
    """Index of the last token, which must be the separator: layouts drop the tokens after it."""
    if not input_ids or input_ids[-1] != separator_id:
        raise DataError(
            f"a tokenised text does not end with the separator (id {separator_id}), so its segments cannot be "
            'aligned: pass layout="plain", or use a tokenizer that puts separators behind its segments (BERT, RoBERTa).'
        )
    return len(input_ids) - 1
