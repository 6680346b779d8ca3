"""Freezing parameters that no loss reaches while an encoder is swapped, and thawing them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

#: Attribute in which DistributedDataParallel looks for names that it is to ignore.
_IGNORED = "_ddp_params_and_buffers_to_ignore"


@dataclass(frozen=True)
class Frozen:
    """Names of parameters: frozen by a swap, other trainable ones, and all that no loss reaches (idle)."""

    names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


def freeze(module: nn.Module, beginnings: Sequence[str]) -> Frozen:
    """Freeze the parameters of a module whose names begin with one of these, before DDP counts trainable ones."""
    own = {name: one for name, one in module.named_parameters() if ".papa." not in f".{name}"}
    idle = tuple(name for name in own if name.startswith(tuple(beginnings)))
    trainable = {name: one for name, one in own.items() if one.requires_grad}
    names = tuple(name for name in idle if name in trainable)
    for name in names:
        trainable[name].requires_grad_(False)
    return Frozen(names, tuple(name for name in trainable if name not in names), idle)


def thaw(module: nn.Module, frozen: Frozen) -> None:
    """Undo :func:`freeze`, unless everything trainable was frozen or wrapped by adapters since."""
    present = dict(module.named_parameters())
    if frozen.others and not any(name in present and present[name].requires_grad for name in frozen.others):
        return
    for name in frozen.names:
        if name in present:  # adapters that were merged are gone
            present[name].requires_grad_(True)


class LeftOut:
    """The names that DistributedDataParallel is to ignore in a model, read anew each time that it wraps the model.

    Idle parameters get no gradient, for which DDP would wait if they were unfrozen. Constants are equal on all
    processes, and DDP would send them at every forward.
    """

    def __init__(
        self, model: nn.Module, names: Callable[[nn.Module], Iterator[str]], others: Sequence[str] = ()
    ) -> None:
        self.model, self.names, self.others = model, names, others

    def __iter__(self) -> Iterator[str]:
        yield from self.others
        for name in self.names(self.model):
            yield name
            yield f"_orig_mod.{name}"  # a compiled model has them under these names


def leave_out(model: nn.Module, names: Callable[[nn.Module], Iterator[str]]) -> None:
    """Let DistributedDataParallel ignore some names of a model when it wraps it."""
    held = model.__dict__.get(_IGNORED, ())
    if not isinstance(held, LeftOut):
        model.__dict__[_IGNORED] = LeftOut(model, names, tuple(held))


def leave_in(model: nn.Module) -> None:
    """Undo :func:`leave_out`."""
    held = model.__dict__.get(_IGNORED)
    if isinstance(held, LeftOut):
        del model.__dict__[_IGNORED]
        if held.others:
            model.__dict__[_IGNORED] = list(held.others)
