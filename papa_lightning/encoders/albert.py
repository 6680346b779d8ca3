"""ALBERT: one attention module serves several layers, so its layers are told apart by the order in which they run."""

from __future__ import annotations

from typing import Any

from torch import nn

from papa_lightning.attention import Turn
from papa_lightning.encoders.layer import remove_hooks


def layers_in_order(encoder: nn.Module) -> list[nn.Module]:
    """The self-attention modules in the order in which a pass runs them, the same one again and again.

    Args:
        encoder: An AlbertModel.
    """
    config: Any = encoder.config
    groups: Any = encoder.get_submodule("encoder.albert_layer_groups")
    repeats = config.num_hidden_layers / config.num_hidden_groups
    return [
        layer.attention
        for number in range(config.num_hidden_layers)
        for layer in groups[int(number / repeats)].albert_layers
    ]


class StartTurns:
    """Forward pre-hook of an encoder: before a pass, the first layer of each shared module is next.

    Args:
        turns: Of the shared modules.
    """

    def __init__(self, turns: list[Turn]) -> None:
        self.turns = turns

    def __call__(self, *_: Any) -> None:
        """Run by torch."""
        for turn in self.turns:
            turn.number = -1


class NextTurn:
    """Forward pre-hook of a shared module: its next layer runs.

    Args:
        turn: Of the module.
    """

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def __call__(self, *_: Any) -> None:
        """Run by torch."""
        self.turn.number += 1


def count_turns(encoder: nn.Module, turns: dict[nn.Module, Turn]) -> None:
    """Keep the turns of shared modules right from now on.

    Args:
        encoder: The bare encoder.
        turns: Shared module -> turn.
    """
    encoder.register_forward_pre_hook(StartTurns(list(turns.values())))
    for module, turn in turns.items():
        module.register_forward_pre_hook(NextTurn(turn))


def stop_turns(encoder: nn.Module) -> None:
    """Undo :func:`count_turns`."""
    for module in encoder.modules():
        remove_hooks(module, lambda hook: isinstance(hook, (StartTurns, NextTurn)))
