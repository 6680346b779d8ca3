"""The kinds of attention that an encoder can be swapped to, by name."""

from __future__ import annotations

import inspect

from papa_lightning.attention.additive import AdditiveHeads
from papa_lightning.attention.aft.mixers import AFTConvHeads, AFTFullHeads, AFTLocalHeads, AFTSimpleHeads
from papa_lightning.attention.compact.mixer import CompactHeads
from papa_lightning.attention.constant.constant import ConstantHeads
from papa_lightning.attention.constant.folded import FoldedHeads
from papa_lightning.attention.constant.gated import GatedHeads
from papa_lightning.attention.constant.shared import SharedHeads
from papa_lightning.attention.mixer import TokenMixer
from papa_lightning.attention.without_constants import UntouchedLayer
from papa_lightning.errors import PapaError

_MIXERS: tuple[type[TokenMixer], ...] = (
    ConstantHeads,
    GatedHeads,
    CompactHeads,
    FoldedHeads,
    SharedHeads,
    AFTFullHeads,
    AFTSimpleHeads,
    AFTLocalHeads,
    AFTConvHeads,
    AdditiveHeads,
    UntouchedLayer,
)

#: Name of a kind -> its class.
KINDS: dict[str, type[TokenMixer]] = {mixer.kind: mixer for mixer in _MIXERS}


def mixer_class(kind: str) -> type[TokenMixer]:
    """The class that implements a kind.

    Args:
        kind: A key of :data:`KINDS`.

    Raises:
        PapaError: When there is no such kind.

    Example:
        >>> mixer_class("gated").__name__
        'GatedHeads'
    """
    if kind not in KINDS:
        raise PapaError(f"kind is {kind!r}, but must be one of {', '.join(map(repr, KINDS))}.")
    return KINDS[kind]


def option_names(mixer: type[TokenMixer]) -> tuple[str, ...]:
    """The options of a kind: what its class takes beside place and heads.

    Example:
        >>> option_names(mixer_class("gated"))
        ()
    """
    return tuple(name for name in inspect.signature(mixer).parameters if name not in ("place", "heads"))
