"""Rewrite the tables of encoders, kinds of attention and criteria in docs/ from their registries: `make docs`.

Everything between the two marker comments is replaced, the rest of each page stays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from papa_lightning.attention import kinds_table
from papa_lightning.criteria import criteria_table
from papa_lightning.encoders import FAMILIES, EncoderFamily, GroupedKeyProjection

DOCS = Path(__file__).parents[1] / "docs"
BEGIN = "<!-- the table is made from the registry by `make docs` -->\n"
END = "<!-- end of the table -->\n"

#: Model types for which the tests hold numbers of the published implementation.
GOLDEN = ("bert", "deberta", "roberta")

_HEADER = (
    "encoder",
    "model type",
    "kinds",
    "not computed for constant heads",
    "slots count from",
    "packed",
    "seam",
    "tested by",
    "notes",
)

_SLOTS = {
    "tensor": "the beginning of the tensor",
    "mask": "the first real token",
    "input_ids": "the first token that is no padding",
}

#: DeBERTa's projections of relative positions to queries; its others are to keys.
_POSITION_QUERIES = ("pos_q_proj", "pos_query_proj")


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
        inspect.cleandoc(family.packs.__doc__ or "") if callable(family.packs) else "yes" if family.packs else "no",
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


#: Table of each page, as Markdown.
TABLES: dict[str, Callable[[], str]] = {
    "encoders.md": families_table,
    "kinds.md": lambda: kinds_table().markdown(),
    "rankings.md": lambda: criteria_table().markdown(),
}


def with_table(text: str, page: str) -> str:
    """The text of a page with its present table.

    Args:
        text: The page.
        page: Its name, a key of :data:`TABLES`.

    Raises:
        SystemExit: When the page lacks the marker comments.
    """
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"{page} has lost its markers: put {BEGIN.strip()!r} and {END.strip()!r} around the table.")
    return f"{before}{BEGIN}\n{TABLES[page]()}\n{END}{after}"


if __name__ == "__main__":
    for page in TABLES:
        path = DOCS / page
        path.write_text(with_table(path.read_text(encoding="utf-8"), page), encoding="utf-8")
