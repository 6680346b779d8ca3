"""Times of variants that run in turn in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


#: Seconds in which the threads of one runtime go to sleep; until then they take cores from those of another.
REST = 0.02


def nothing(*_: object) -> None:
    """Do nothing: the CPU needs no synchronization, and one runtime alone no rest."""


def settle(run: Callable[[], object]) -> None:
    """Let the threads of what ran last go to sleep, and wake those of a function."""
    time.sleep(REST)
    run()


def interleaved_times(
    runs: Mapping[Key, Callable[[], object]],
    repeats: int,
    warmup: int,
    synchronize: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[Callable[[], object]], object] = nothing,
) -> dict[Key, list[float]]:
    """Seconds of each run of functions in turn, so that drift affects all alike; without garbage collection.

    What is done ``before`` each run, with its function, is not timed.
    """
    times: dict[Key, list[float]] = {key: [] for key in runs}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for repeat in range(warmup + repeats):
            for key, run in runs.items():
                before(run)
                synchronize()
                start = clock()
                run()
                synchronize()
                seconds = clock() - start
                if repeat >= warmup:
                    times[key].append(seconds)
    finally:
        if enabled:
            gc.enable()
    return times


def synchronizer(device: torch.device) -> Callable[[], object]:
    """A function that waits until a device is idle."""
    return nothing if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class Spread:
    """Median, and first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """The spread of at least two numbers."""
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)
