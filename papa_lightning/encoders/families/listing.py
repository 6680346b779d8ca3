"""The table of supported encoders in the documentation, made from the registry so that it cannot be out of date."""

from __future__ import annotations

import inspect

from papa_lightning.encoders.families.table import FAMILIES, EncoderFamily
from papa_lightning.encoders.projections.cut import GroupedKeyProjection

#: Model types for which the tests hold numbers of the published implementation.
GOLDEN = ("bert", "deberta", "roberta")

_HEADER = (
    "encoder",
    "model type",
    "kinds",
    "not computed for constant heads",
    "slots count from",
    "seam",
    "tested by",
    "notes",
)

_SLOTS = {
    "tensor": "the beginning of the tensor",
    "mask": "the first real token",
    "input_ids": "the first token that is no padding",
}


def families_table() -> str:
    """The supported encoders as a markdown table, one row a family, in the order of their model types."""
    rows = [_HEADER, ("---",) * len(_HEADER), *(_row(name, FAMILIES[name]) for name in sorted(FAMILIES))]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(model_type: str, family: EncoderFamily) -> tuple[str, ...]:
    return (
        family.title or model_type,
        f"`{model_type}`",
        'all but "folded"' if family.value is None else "all",
        _not_computed(family),
        inspect.cleandoc(family.slots.__doc__ or "") if callable(family.slots) else _SLOTS[family.slots],
        "attention interface" if family.inline is None else "own forward",
        "conformance, golden numbers" if model_type in GOLDEN else "conformance",
        family.note,
    )


def _not_computed(family: EncoderFamily) -> str:
    """What a constant head leaves out, by the attributes of the self-attention module."""
    parts = [_describe(name, family) for name in family.projections]
    parts += [f"`{name.removesuffix('.weight')}`" for name in family.query_parameters]
    return ", ".join(parts)


def _describe(name: str, family: EncoderFamily) -> str:
    projection = family.projections[name]
    if projection.holds_values:
        return f"query and key parts of `{name}`"
    if name.startswith("pos_"):
        return f"`{name}` ({'position-to-content' if name in _POSITION_QUERIES else 'content-to-position'} scores)"
    if projection is GroupedKeyProjection:
        return f"`{name}` (where no head of its group needs it)"
    return f"`{name}`"


#: DeBERTa's projections of relative positions to queries; its others are to keys.
_POSITION_QUERIES = ("pos_q_proj", "pos_query_proj")
