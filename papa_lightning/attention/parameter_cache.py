"""Cache of results that depend on parameters alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """Last result of a function of parameters, computed again when one of them is replaced or has changed.

    A change is a new parameter, new memory (a move, another dtype, loading with assign=True), a step of any optimizer
    if the parameter can be trained, or a write in place that torch counts: load_state_dict, everything under
    ``torch.no_grad``. Writes through ``parameter.data`` are not counted by torch, so owners also forget when they are
    set to training or evaluation.

    Nothing is kept while gradients may flow to the parameters, while they are trained, and in a compiled graph. Copies
    of the owner begin empty.

    Example:
        >>> weight, doubled = torch.ones(2), Remembered()
        >>> doubled.recall(lambda: 2 * weight, [weight])
        tensor([2., 2.])
        >>> doubled.recall(lambda: 2 * weight, [weight]) is doubled.recall(lambda: 2 * weight, [weight])
        True
        >>> weight += 1
        >>> doubled.recall(lambda: 2 * weight, [weight])
        tensor([4., 4.])
    """

    def __init__(self) -> None:
        _Steps.watch()
        self._held: tuple[_Origin, Result] | None = None

    def recall(
        self,
        compute: Callable[[], Result],
        parameters: Sequence[Tensor],
        settings: Hashable = None,
        training: bool = False,
    ) -> Result:
        """The result, kept or computed now.

        Args:
            compute: Function that depends on the parameters and the settings alone; called without gradients when the
                result is kept.
            parameters: Tensors that it reads.
            settings: Further values that it depends on.
            training: Whether the owner is in training mode.
        """
        if torch.compiler.is_compiling():
            return compute()
        trained = any(parameter.requires_grad for parameter in parameters) and (training or torch.is_grad_enabled())
        if trained or not all(_is_plain(parameter) for parameter in parameters):
            self.forget()
            return compute()
        held = self._held  # read once: replicas of a module in other threads share this object
        if held is None or not held[0].still_is(parameters, settings):
            # What is made in inference mode could never take part in a backward pass.
            with torch.inference_mode(False), torch.no_grad():
                held = _Origin(parameters, settings), compute()
            self._held = held
        return held[1]

    def forget(self) -> None:
        """Drop the result."""
        self._held = None

    def __reduce__(self) -> tuple[type[Remembered[Result]], tuple[()]]:
        """Make copies and pickles begin empty."""
        return type(self), ()


class _Steps:
    """Number of optimizer steps since the first result was remembered: fused ones write without being counted by torch.

    The hook is registered with the first swap, so that importing the package changes nothing in torch.
    """

    taken = 0
    watched = False

    @classmethod
    def watch(cls) -> None:
        """Count from now on."""
        if not cls.watched:
            register_optimizer_step_post_hook(cls._count)
            cls.watched = True

    @classmethod
    def _count(cls, *_: object) -> None:
        cls.taken += 1


class _Origin:
    """Parameters of a result, by weak references that keep neither them nor their memory alive."""

    def __init__(self, parameters: Sequence[Tensor], settings: Hashable) -> None:
        self.settings = settings
        self.parameters = [weakref.ref(parameter) for parameter in parameters]
        self.states = [_state(parameter) for parameter in parameters]
        # While these live, their addresses are not given to other memory.
        self.storages = [StorageWeakRef(parameter.untyped_storage()) for parameter in parameters]  # type: ignore[no-untyped-call]

    def still_is(self, parameters: Sequence[Tensor], settings: Hashable) -> bool:
        """Whether the parameters and settings are unchanged."""
        return (
            settings == self.settings
            and len(parameters) == len(self.parameters)
            and all(known() is parameter for known, parameter in zip(self.parameters, parameters, strict=True))
            and [_state(parameter) for parameter in parameters] == self.states
        )


def _state(parameter: Tensor) -> Hashable:
    writes = parameter._version, _Steps.taken if parameter.requires_grad else None
    memory = parameter.untyped_storage()._cdata, parameter.storage_offset(), parameter.stride()
    return writes, memory, parameter.shape, parameter.dtype


def _is_plain(parameter: Tensor) -> bool:
    """Whether changes of a tensor can be noticed, unlike those of wrapped tensors, as in torch.func."""
    return (
        type(parameter) in (Tensor, nn.Parameter)
        and not parameter.is_inference()
        and not torch._C._functorch.is_functorch_wrapped_tensor(parameter)
    )
