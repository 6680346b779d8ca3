"""Launches of a kernel again and again, with all arguments but tensors known before."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def aligned(*tensors: Tensor | None) -> bool:
    """Whether tensors begin where vectors of 16 bytes may."""
    places = 0
    for tensor in tensors:
        if tensor is not None:
            places |= tensor.data_ptr()
    return not places & 15


def by_sequence(mask: Tensor | None, batch: int) -> Tensor | None:
    """A mask (B, T), also of one row for all sequences, which is read for each of them without a copy."""
    return mask if mask is None or mask.shape[0] == batch else mask.expand(batch, -1)


class Launch:
    """A kernel whose first arguments are tensors, and all others numbers that are known.

    Triton finds the compiled form of a kernel by the dtype and the place of every argument, which takes longer than the
    launch. Here it is found once.

    Args:
        kernel: The kernel.
        grid: Number of programs.
        numbers: Its arguments by name; those that it does not have are left out.
        options: Warps, stages and registers.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], numbers: Mapping[str, Any], options: dict[str, int]) -> None:
        self._kernel, self._options = kernel, options
        self._grid = (*grid, 1, 1)[:3]
        self._numbers = tuple(numbers[name] for name in kernel.arg_names if name in numbers)
        self._run: Any = None

    def __call__(self, aligned: bool, *tensors: Tensor | None) -> None:
        """Launch on tensors that have the same dtypes in every call, and say whether they are :func:`aligned`."""
        if aligned and self._run is not None:
            self._run(*tensors, *self._numbers)
            return
        compiled = self._kernel[self._grid](*tensors, *self._numbers, **self._options)
        if aligned and compiled is not None:  # Triton's interpreter compiles nothing
            self._run = compiled[self._grid]
