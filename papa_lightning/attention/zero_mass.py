"""Warning of real tokens that attend to nothing, because calibration saw none of their keys."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from papa_lightning.attention.functional import EPS, constant_mass

#: Most batches, times layers, whose results are on their way from a device.
_MOST = 256


class ZeroMassWarning(UserWarning):
    """A real token attends to nothing: calibration saw none of the keys that it may attend to."""


def pruned_heads(constants: Tensor) -> Tensor:
    """(H,), true for constants (H, T, T) that are 0 throughout, on purpose: no average is, before it is cut."""
    return (constants == 0).flatten(1).all(dim=1)


def first_zero_of_diagonal(constants: Tensor) -> int:
    """The first position whose own entry C[h,i,i] is 0 in some head that is not pruned, or T when there is none."""
    return certain_length(constants.diagonal(dim1=1, dim2=2), pruned_heads(constants))


def certain_length(own: Tensor, pruned: Tensor) -> int:
    """The first position without a weight for itself, of (H, T), in some head that is not pruned, of (H,), or T."""
    uncertain = ((own == 0) & ~pruned[:, None]).any(dim=0)
    return int(torch.cat([uncertain, uncertain.new_ones(1)]).int().argmax())


class ZeroMassWatch:
    """Warns once, for all layers that share it, of real query rows without mass, but not in heads that are all 0.

    On CUDA no batch waits for the check: the warning comes with a later batch. In a CUDA graph nothing is checked.
    """

    def __init__(self) -> None:
        self.warned = False
        self._waiting = _Waiting()

    def check(
        self, layer: int, heads: Sequence[int], constants: Tensor, mask: Tensor | None, whole: Tensor | None = None
    ) -> None:
        """Check (H, t, t) of heads, cut from ``whole`` (H, T, T) unless it is None, for a batch with a mask (B, t)."""
        if self.warned or _is_captured(constants):
            return
        mass = constant_mass(constants.detach(), mask)
        if mass.is_cuda or (mass < EPS).any():  # only then are the whole constants read
            pruned = pruned_heads((constants if whole is None else whole).detach())
            self.check_mass(layer, heads, mass, mask, pruned)

    def check_mass(self, layer: int, heads: Sequence[int], mass: Tensor, mask: Tensor | None, pruned: Tensor) -> None:
        """Check the row sums (B or 1, H, t) over the real keys, of constants of any form, but for pruned heads (H,)."""
        if self.warned or _is_captured(mass):
            return
        empty = (mass < EPS) & ~pruned[:, None]
        if mask is not None:
            empty = empty & mask.bool()[:, None, :]
        if mass.is_cuda:
            self._waiting.append(_Flag(empty, layer, tuple(heads)))
            self.settle(wait=len(self._waiting) > _MOST)
        elif empty.any():
            self._warn(layer, heads, empty)

    def settle(self, wait: bool = True) -> None:
        """Give the warning of a batch that was checked on a device, whose result is here, or is waited for."""
        while self._waiting and not self.warned and (wait or self._waiting[0].is_here):
            flag = self._waiting.pop(0)
            if flag.is_set:
                self._warn(flag.layer, flag.heads, flag.empty)
        if self.warned:
            self._waiting.clear()

    def _warn(self, layer: int, heads: Sequence[int], empty: Tensor) -> None:
        self.warned = True
        rows = empty.any(dim=0).nonzero().tolist()
        affected = sorted({heads[head] for head, _ in rows})
        positions = sorted({position for _, position in rows})
        self.report(
            f"layer {layer}, heads {affected}: real tokens at positions {positions} attend to nothing, because "
            "calibration saw none of the keys they may attend to; their attention output is 0. Fill the constants "
            "(fill_unseen=True of a callback, or constants.filled()), calibrate on sequences that reach these "
            "positions, or cut the input. (Reported once; other layers may be affected too.)"
        )

    def report(self, text: str) -> None:
        """Give the warning."""
        warnings.warn(text, ZeroMassWarning, stacklevel=4)


class _Flag:
    """Whether some row of a batch is empty, on its way from a GPU; ``empty`` is (B or 1, H, t)."""

    def __init__(self, empty: Tensor, layer: int, heads: tuple[int, ...]) -> None:
        self.empty, self.layer, self.heads = empty, layer, heads
        self._found = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._found.copy_(empty.any(), non_blocking=True)
        self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrival.record(torch.cuda.current_stream(empty.device))  # which may not be of the current device

    @property
    def is_here(self) -> bool:
        """Whether it can be read without waiting."""
        return bool(self._arrival.query())  # type: ignore[no-untyped-call]

    @property
    def is_set(self) -> bool:
        """Its value."""
        self._arrival.synchronize()
        return bool(self._found)


class _Waiting(list[_Flag]):
    """Flags that were not read yet; copies begin empty."""

    def __reduce__(self) -> tuple[type[_Waiting], tuple[()]]:
        return type(self), ()


def _is_captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class ZeroMassRecord(ZeroMassWatch):
    """Keeps the text of the warning, for a run that swaps many times and warns at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._text = ""

    @property
    def text(self) -> str:
        """The text, "" as long as there is none."""
        self.settle()
        return self._text

    def report(self, text: str) -> None:
        """Keep the text."""
        self._text = text
