"""The kinds of attention that an encoder can be swapped to, by name."""

from __future__ import annotations

from papa_lightning.attention.base import TokenMixer
from papa_lightning.attention.constant import ConstantHeads
from papa_lightning.attention.gated import GatedHeads
from papa_lightning.exceptions import PapaError

KINDS: dict[str, type[TokenMixer]] = {mixer.kind: mixer for mixer in (ConstantHeads, GatedHeads)}


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
