"""Where the constants of an encoder come from, noted beside them for the next fit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from papa_lightning.encoders import swapped_layers

_NOTE = "papa_origin"


@dataclass(frozen=True)
class Origin:
    """Where constants come from.

    Args:
        callback: Identifies the callback that brought them, and its copies.
        text: What they are, for a sentence.
    """

    callback: str
    text: str


def note_origin(encoder: nn.Module, origin: Origin) -> None:
    """Note where the constants of a swapped encoder come from; another swap forgets it."""
    vars(swapped_layers(encoder)[0])[_NOTE] = origin


def origin_of(encoder: nn.Module) -> Origin | None:
    """What :func:`note_origin` noted; None for constants that a module or its state brought along."""
    layers = swapped_layers(encoder)
    return vars(layers[0]).get(_NOTE) if layers else None
