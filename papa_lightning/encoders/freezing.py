"""Freezing parameters that no loss reaches while an encoder is swapped, and thawing them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Frozen:
    """Names of parameters that were frozen, and of those beside them that could be trained too.

    Args:
        names: To be thawed.
        others: While one of these can still be trained, nobody froze the whole in between.
    """

    names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def freeze(module: nn.Module, beginnings: Sequence[str]) -> Frozen:
    """Freeze the parameters of a module whose names begin in one of these ways, before DDP counts the trainable."""
    trainable = {
        name: one for name, one in module.named_parameters() if one.requires_grad and ".papa." not in f".{name}"
    }
    names = tuple(name for name in trainable if name.startswith(tuple(beginnings)))
    for name in names:
        trainable[name].requires_grad_(False)
    return Frozen(names, tuple(name for name in trainable if name not in names))


def thaw(module: nn.Module, frozen: Frozen) -> None:
    """Undo :func:`freeze`, unless all that was trainable was frozen or taken in by adapters since."""
    present = dict(module.named_parameters())
    if frozen.others and not any(name in present and present[name].requires_grad for name in frozen.others):
        return
    for name in frozen.names:
        if name in present:  # adapters that were merged are gone
            present[name].requires_grad_(True)
