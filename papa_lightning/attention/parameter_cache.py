"""Cache for what is computed from parameters alone, valid for as long as these stay as they are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """The last result of a function of parameters, computed again when one of them is replaced or changed.

    New memory, steps of any optimizer and writes that torch counts are changes. Nothing is kept where gradients may
    flow, in training mode, where averages of weights are written through ``parameter.data``, which torch does not
    count, and in a compiled graph. A CUDA graph computes results of parameters that learn in every replay; those of
    frozen ones it takes as they were kept before its capture, and they stay for as long as this object.
    """

    def __init__(self) -> None:
        self._held: tuple[_Origin, Result] | None = None
        self._captured: list[Result] = []

    def recall(
        self,
        compute: Callable[[], Result],
        parameters: Sequence[Tensor],
        settings: Hashable = None,
        training: bool = False,
    ) -> Result:
        """The kept result, or a new one: ``compute()``, without gradients, of the parameters and settings alone."""
        if torch.compiler.is_compiling():
            return compute()
        held = self._held  # read once: replicas of a module in other threads share this object
        known = held is not None and held[0].still_is(parameters, settings)
        learns = held[0].learns if held is not None and known else _learns(parameters)
        if training or (learns and torch.is_grad_enabled()):
            self.forget()
            return compute()
        capturing = _is_capturing(parameters)
        if capturing and (learns or not known):  # memory of the graph, which is filled when it is replayed
            return compute()
        if held is not None and known:
            if capturing and not any(one is held[1] for one in self._captured):
                self._captured.append(held[1])
            return held[1]
        if not all(is_plain(parameter) for parameter in parameters):
            self.forget()
            return compute()
        # What is made in inference mode could never take part in a backward pass.
        with torch.inference_mode(False), torch.no_grad():
            held = _Origin(parameters, settings), compute()
        self._held = held
        return held[1]

    def forget(self) -> None:
        """Drop the kept result; owners do in ``train``, because writes through ``parameter.data`` are not counted."""
        self._held = None

    def __reduce__(self) -> tuple[type[Remembered[Result]], tuple[()]]:
        """Copies, also those read from a file, begin empty."""
        return type(self), ()


class _Steps:
    """Steps of all optimizers, counted while a result could get stale: fused ones write what torch does not count."""

    taken = 0
    _concerned: ClassVar[set[int]] = set()
    _hook: ClassVar[RemovableHandle | None] = None
    _lock: ClassVar[threading.RLock] = threading.RLock()  # reentrant: garbage collection may release inside `concern`

    @classmethod
    def concern(cls, origin: _Origin) -> None:
        """Count steps until an origin is gone."""
        with cls._lock:
            cls._concerned.add(id(origin))
            if cls._hook is None:
                cls._hook = register_optimizer_step_post_hook(cls._count)
        weakref.finalize(origin, cls._release, id(origin)).atexit = False

    @classmethod
    def _release(cls, origin: int) -> None:
        with cls._lock:
            cls._concerned.discard(origin)
            if not cls._concerned and cls._hook is not None:
                cls._hook.remove()
                cls._hook = None

    @classmethod
    def _count(cls, *_: object) -> None:
        cls.taken += 1


class _Origin:
    """Parameters that a result was computed from, held by weak references so that they can be freed."""

    def __init__(self, parameters: Sequence[Tensor], settings: Hashable) -> None:
        self.settings = settings
        self.learns = _learns(parameters)
        self.parameters = [(weakref.ref(parameter), _state(parameter)) for parameter in parameters]
        # While these live, no other memory is taken for the same.
        self.storages = [StorageWeakRef(parameter.untyped_storage()) for parameter in parameters]  # type: ignore[no-untyped-call]
        if self.learns:
            _Steps.concern(self)

    def still_is(self, parameters: Sequence[Tensor], settings: Hashable) -> bool:
        """Whether nothing has changed."""
        if settings != self.settings or len(parameters) != len(self.parameters):
            return False
        for parameter, (known, state) in zip(parameters, self.parameters, strict=True):
            if known() is not parameter or _state(parameter) != state:
                return False
        return True


def _state(parameter: Tensor) -> Hashable:
    """All that changes with a tensor: its writes, its memory and how it reads this, and whether it learns."""
    return (
        parameter._version,
        _Steps.taken if parameter.requires_grad else None,
        parameter.untyped_storage()._cdata,
        parameter.storage_offset(),
        parameter.stride(),
        parameter.shape,
        parameter.dtype,
    )


def _learns(parameters: Sequence[Tensor]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def _is_capturing(parameters: Sequence[Tensor]) -> bool:
    """Whether a CUDA graph is being captured, of what is computed from parameters."""
    return any(parameter.is_cuda for parameter in parameters) and torch.cuda.is_current_stream_capturing()


def is_plain(parameter: Tensor) -> bool:
    """Whether changes of a tensor can be detected, unlike those of stand-ins as in torch.func."""
    return (
        type(parameter) in (Tensor, nn.Parameter)
        and not parameter.is_inference()
        and not torch._C._functorch.is_functorch_wrapped_tensor(parameter)
    )
