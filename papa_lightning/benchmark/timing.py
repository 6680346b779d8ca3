"""Times of things that are compared: run in turn, in one process, with nothing else going on in it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def nothing() -> None:
    """Do nothing: the CPU has nothing to wait for."""


def interleaved_times(
    runs: Mapping[Key, Callable[[], object]],
    repeats: int,
    warmup: int,
    synchronize: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[float]]:
    """Time several things, one run of each in turn, so that a drift of the machine hits all alike.

    Python's garbage collector is off meanwhile.

    Args:
        runs: What is timed.
        repeats: Timed runs of each.
        warmup: Runs of each before, which do not count.
        synchronize: Waits for the device; called before the clock is looked at.
        clock: Gives seconds.

    Returns:
        The seconds of each run, in the order in which they were made.

    Example:
        >>> ticks = iter(range(100))
        >>> interleaved_times({"a": lambda: next(ticks), "b": lambda: 0}, 2, warmup=1, clock=lambda: next(ticks))
        {'a': [2, 2], 'b': [1, 1]}
    """
    times: dict[Key, list[float]] = {key: [] for key in runs}
    with without_garbage_collection():
        for repeat in range(warmup + repeats):
            for key, run in runs.items():
                synchronize()
                start = clock()
                run()
                synchronize()
                seconds = clock() - start
                if repeat >= warmup:
                    times[key].append(seconds)
    return times


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect now, and not again before the end."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def threads_of_torch(number: int | None) -> Iterator[None]:
    """Compute with a number of threads; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronizer(device: torch.device) -> Callable[[], object]:
    """What waits until a device has done all its work."""
    return nothing if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and how far they lie apart.

    Args:
        median: Half of the numbers are below.
        low: A quarter is below.
        high: A quarter is above.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Median and quartiles of at least two numbers.

        Example:
            >>> Spread.of([5.0, 1.0, 2.0, 3.0, 4.0])
            Spread(median=3.0, low=2.0, high=4.0)
        """
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)
