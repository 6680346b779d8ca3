"""Registry of the kinds of attention that an encoder can be swapped to.

Each kind registers its class in its own file. Those of other packages are entry points of the group
``papa_lightning.kinds``.
"""

from __future__ import annotations

from papa_lightning.attention.mixer import KindFacts, TokenMixer
from papa_lightning.registry import Registry
from papa_lightning.text import Table

#: Classes of kinds by name.
KINDS: Registry[type[TokenMixer]] = Registry(
    "kind",
    lambda part: isinstance(part, type) and issubclass(part, TokenMixer),
    group="papa_lightning.kinds",
    attribute="kind",
)


def kinds_table() -> Table:
    """The table of kinds of the documentation.

    Example:
        >>> kinds_table().columns
        ('kind', 'what a layer computes', 'new parameters a layer', 'cost', 'starts from')
    """
    rows = []
    for name, mixer in KINDS.items():
        facts = vars(mixer).get("facts", KindFacts())  # its own: those of the kind that it derives from are not its
        computes = facts.computes or (mixer.__doc__ or "").strip().partition("\n")[0]
        rows.append((f"`{name}`", computes, facts.parameters, facts.cost, facts.starts))
    columns = ("kind", "what a layer computes", "new parameters a layer", "cost", "starts from")
    return Table(columns, rows, left=len(columns))
