"""A parameter group of their own for gates, in whatever optimizer a LightningModule configures.

When the Trainer runs ``fit``, in this order: ``setup`` of the callbacks, of the module; ``strategy.setup``, which wraps
the model for DDP and calls ``configure_optimizers``; ``on_fit_start``; the optimizers' state from a checkpoint;
``on_train_start``. The gates join the module in ``setup``, so DDP knows them, but the module's optimizer would take
them at its own learning rate and weight decay, or, where it is made from the probe's parameters alone, not at all. A
group that is added after ``configure_optimizers`` comes too late for learning rate schedulers, which note a value for
each group when they are made. So the group is made while the optimizer is: each time that the first group of an
optimizer is added, the gates get theirs behind it, in the same place in every run, where a checkpoint finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch.optim import Optimizer

from papa_lightning.either_lightning import L

#: Marks our ``configure_optimizers``, and holds the one that the module itself, apart from its class, had before.
_BEFORE = "papa_before"


def give_own_group(
    module: L.LightningModule, gates: Callable[[], Sequence[nn.Parameter]], learning_rate: float | None
) -> None:
    """Let the next ``configure_optimizers`` of a module put gates into a group of their own, without weight decay.

    Args:
        module: The module; :func:`forget_own_group` undoes it.
        gates: Gives the gates when the optimizer is made.
        learning_rate: Of the gates; None takes that of the first group.
    """
    forget_own_group(module)
    original = module.configure_optimizers

    @wraps(original)
    def configure_optimizers() -> Any:
        with _gates_apart(gates(), learning_rate):
            return original()

    configure_optimizers.__dict__[_BEFORE] = module.__dict__.get("configure_optimizers")
    module.__dict__["configure_optimizers"] = configure_optimizers


def forget_own_group(module: L.LightningModule) -> None:
    """Undo :func:`give_own_group`."""
    ours = getattr(module.__dict__.get("configure_optimizers"), "__dict__", {})
    if _BEFORE in ours:
        del module.__dict__["configure_optimizers"]
        if ours[_BEFORE] is not None:
            module.__dict__["configure_optimizers"] = ours[_BEFORE]


@contextmanager
def _gates_apart(gates: Sequence[nn.Parameter], learning_rate: float | None) -> Iterator[None]:
    known = {id(gate) for gate in gates}
    placed: list[Optimizer] = []
    original = Optimizer.add_param_group

    def add_param_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
        params = group["params"]
        entries = [params] if isinstance(params, Tensor) else list(params)
        rest = [entry for entry in entries if id(_tensor(entry)) not in known]
        if rest:
            original(optimizer, {**group, "params": rest})
        if not placed:
            placed.append(optimizer)
            own = {**group, "params": _like(entries, gates), "weight_decay": 0.0}
            original(optimizer, own if learning_rate is None else {**own, "lr": learning_rate})

    with mock.patch.object(Optimizer, "add_param_group", add_param_group):
        yield


def _tensor(entry: Any) -> Tensor:
    """Of an entry of a group: a parameter, or a pair of name and parameter."""
    tensor: Tensor = entry[1] if isinstance(entry, tuple) else entry
    return tensor


def _like(entries: list[Any], gates: Sequence[nn.Parameter]) -> list[Any]:
    """The gates with names where the other entries have names: torch wants all or none."""
    if entries and isinstance(entries[0], tuple):
        return [(f"gate_logits.{layer}", gate) for layer, gate in enumerate(gates)]
    return list(gates)
