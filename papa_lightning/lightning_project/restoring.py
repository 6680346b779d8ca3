"""Restoring the state of objects with all that they hold: weights, buffers, metrics, counters, lists, generators."""

import random
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

#: Classes of these packages hold running threads or processes, or no state that a step changes.
_RUNNING = ("loggers", "loops", "strategies", "trainer")
_LEFT_ALONE = (
    *("asyncio", "concurrent", "logging", "multiprocessing", "queue", "socket", "subprocess", "threading", "weakref"),
    *("datasets", "pandas", "polars", "pyarrow", "tokenizers", "torch._dynamo", "torch._inductor", "torch.distributed"),
    *("torch.fx", "torch.utils.data.dataloader._"),
    # The Trainer of another module, such as a teacher.
    *(f"{lightning}.{part}" for lightning in ("lightning.pytorch", "pytorch_lightning") for part in _RUNNING),
)
_NO_STATE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, str, bytes, int)
#: Entries of longer containers (rows of a data set) are restored as references, not looked into.
_LONG = 10_000


@contextmanager
def unchanged(objects: Iterable[object], besides: Iterable[object] = (), tensors: bool = True) -> Iterator[None]:
    """Restore objects and all that they reach but `besides`; values of tensors if wanted, but never those of data."""
    kept = _Kept(besides, tensors)
    for one in objects:
        kept.keep(one)
    try:
        yield
    finally:
        kept.restore()


class _Kept:
    def __init__(self, besides: Iterable[object], tensors: bool) -> None:
        self._seen: dict[int, object] = {id(one): one for one in besides}  # holds them, so that no number is reused
        self._tensors = tensors
        self._undo: list[Callable[[], object]] = []

    def keep(self, root: object) -> None:
        waiting = [root]
        while waiting:
            one = waiting.pop()
            if one is None or id(one) in self._seen or issubclass(type(one), _NO_STATE) or _is_left_alone(type(one)):
                continue
            self._seen[id(one)] = one
            waiting.extend(self._note(one))

    def restore(self) -> None:
        for undo in reversed(self._undo):
            undo()

    def _note(self, one: Any) -> Iterable[object]:
        """Record one object; returns the objects that it holds."""
        found: list[object] = []
        if isinstance(one, (Tensor, np.ndarray)):
            if self._tensors:
                self._undo.append(_tensor(one) if isinstance(one, Tensor) else _array(one))
            return ()
        if self._tensors and isinstance(one, (Dataset, DataLoader)):
            data = _Kept(self._seen.values(), tensors=False)
            del data._seen[id(one)]
            data.keep(one)
            self._undo.append(data.restore)
            return ()
        if (generator := _generator(one)) is not None:
            self._undo.append(generator)
            return ()
        if isinstance(one, (list, dict, set, deque)):
            self._undo.append(_contents(one))
        if isinstance(one, (list, dict, set, deque, tuple)) and len(one) <= _LONG:
            found.extend(one.values() if isinstance(one, dict) else one)
        if type(getattr(one, "__dict__", None)) is dict:
            self._undo.append(_contents(vars(one)))
            found.extend(vars(one).values())
        if slots := _slots(one):
            self._undo.append(partial(_set_attributes, one, slots))
            found.extend(slots.values())
        return found


def _is_left_alone(kind: type) -> bool:
    name = f"{kind.__module__}.{kind.__qualname__}"
    return kind in weakref.ProxyTypes or any(
        name == one or name.startswith(one if one.endswith("_") else f"{one}.") for one in _LEFT_ALONE
    )


def _slots(one: object) -> dict[str, Any]:
    """Attributes of an object that its class keeps in slots."""
    named = (vars(cls).get("__slots__", ()) for cls in type(one).__mro__)
    names = [name for slots in named for name in ([slots] if isinstance(slots, str) else slots)]
    own = [name for name in names if isinstance(getattr(type(one), name, None), types.MemberDescriptorType)]
    return {name: getattr(one, name) for name in own if hasattr(one, name)}


def _set_attributes(one: object, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if getattr(one, name, None) is not value:
            object.__setattr__(one, name, value)


def _tensor(one: Tensor) -> Callable[[], None]:
    whole: bool = one.layout == torch.strided and not is_lazy(one) and not one.is_meta
    if not whole or one.is_inference() or hasattr(one, "__tensor_flatten__"):  # the last: a wrapper of other tensors
        return lambda: None
    learns, gradient = one.requires_grad, one.grad if one.is_leaf else None
    place = one.data
    values = place.to("cpu", copy=True)

    def undo() -> None:
        if one.data_ptr() != place.data_ptr() or one.shape != place.shape or one.dtype != place.dtype:
            one.data = place
        if not torch.equal(place.cpu(), values):
            place.copy_(values)
        if one.is_leaf:
            if one.requires_grad != learns:
                one.requires_grad_(learns)
            one.grad = gradient

    return undo


def _array(one: np.ndarray[Any, Any]) -> Callable[[], None]:
    values = one.copy()

    def undo() -> None:
        if one.flags.writeable:
            one[...] = values

    return undo


def _generator(one: Any) -> Callable[[], object] | None:
    """Function that restores a random number generator; None for anything else."""
    if isinstance(one, torch.Generator):
        return partial(one.set_state, one.get_state())
    if isinstance(one, np.random.RandomState):
        return partial(one.set_state, one.get_state())
    if isinstance(one, random.Random):
        return partial(one.setstate, one.getstate())
    if isinstance(one, np.random.Generator):
        return partial(setattr, one.bit_generator, "state", one.bit_generator.state)
    return None


def _contents(one: Any) -> Callable[[], None]:
    """Function that restores the entries of a container."""
    mapping = isinstance(one, dict)
    before: Any = dict(one) if mapping else list(one)

    def undo() -> None:
        pairs: Iterator[tuple[object, object]] = zip(one, before, strict=False)
        if mapping:
            pairs = chain(pairs, zip(one.values(), before.values(), strict=False))
        if len(one) != len(before) or any(now is not then for now, then in pairs):
            one.clear()
            (one.extend if hasattr(one, "extend") else one.update)(before)

    return undo
