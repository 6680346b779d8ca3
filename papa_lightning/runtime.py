"""Versions, devices and memory: what a result was measured with, and where."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import profile

from papa_lightning.errors import PapaError

#: The version of the package.
__version__ = "0.1.0.dev0"

_PACKAGES = ("torch", "transformers", "datasets", "torchmetrics")


def find_device(name: str) -> torch.device:
    """The device that a name means; "auto" takes an accelerator where there is one.

    Raises:
        PapaError: When there is no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("its tensors have no values")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PapaError(f"device is {name!r}, which is not available ({error}): pass auto, or cpu.") from error
    return device


class AllocationWatch:
    """The most bytes that are allocated at one moment between its start and its stop, beyond those of the start.

    On CUDA, what PyTorch's own allocator counts; it forgets earlier peaks. On the CPU, every allocation of PyTorch's
    allocator as its profiler records them, also those inside an operation; not what the mathematics library takes for
    itself. What was allocated before and is freed meanwhile lowers the count on CUDA only. Other devices, and a CPU on
    which another profiler runs already, cannot be watched.

    Args:
        device: Where the work is done.

    Example:
        >>> watch = AllocationWatch(torch.device("cpu"))
        >>> watch.start()
        >>> del [torch.ones(256), torch.ones(256)][:]
        >>> watch.stop()
        2048
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0
        self._profile: Any = None

    def start(self) -> None:
        """Look at what is allocated from now on."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif self.device.type == "cpu" and not torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library would print when it starts and stops
            self._profile = profile(profile_memory=True)
            self._profile.__enter__()

    def stop(self) -> int | None:
        """Look no longer.

        Returns:
            Bytes, or None where they cannot be counted.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._before
        if self._profile is None:
            return None
        recorded, self._profile = self._profile, None
        recorded.__exit__(None, None, None)
        events = recorded.kineto_results.events()
        changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
        return int(max(accumulate((change for _, change in sorted(changes, key=lambda one: one[0])), initial=0)))


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """What :class:`AllocationWatch` sees of a call.

    Args:
        run: A pass; what it keeps afterwards counts too.
        device: Where it runs.

    Returns:
        Bytes; None where they cannot be counted.
    """
    watch = AllocationWatch(device)
    watch.start()
    try:
        run()
    finally:
        found = watch.stop()
    return found


def held_bytes(module: nn.Module, without: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module that another one does not share.

    Args:
        module: Any.
        without: Whose memory does not count.
    """
    shared = set(_storages(without))
    return sum(size for key, size in dict(_sized(module)).items() if key not in shared)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use since :func:`forget_peak`: on CUDA what torch allocated, else of the whole process.

    Returns:
        Bytes; None where the system does not tell.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def forget_peak(device: torch.device) -> None:
    """Start again from the memory that is in use now; where a process may not, the peak is that of its whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: see proc(5), the peak of the resident memory
    except OSError:
        return


def release_memory() -> None:
    """Give back what nobody uses: freed memory that the process still holds would hide what comes next."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # not glibc
        return


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{name}:")]
    return int(found[0][1]) * 1024 if found else None


def _storages(module: nn.Module) -> Iterable[Hashable]:
    return (key for key, _ in _sized(module))


def _sized(module: nn.Module) -> Iterable[tuple[Hashable, int]]:
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        yield (storage.data_ptr(), storage.nbytes()), storage.nbytes()


@lru_cache
def versions() -> dict[str, str]:
    """The versions that numbers depend on.

    Example:
        >>> sorted(versions())
        ['datasets', 'papa_lightning', 'python', 'torch', 'torchmetrics', 'transformers']
    """
    found = {name: version(name) for name in _PACKAGES}
    return found | {"papa_lightning": __version__, "python": platform.python_version()}


def computing_versions() -> dict[str, str]:
    """Those of what computes: with others of Python or of what reads data, the same rows give the same numbers.

    Example:
        >>> sorted(computing_versions())
        ['papa_lightning', 'torch', 'torchmetrics', 'transformers']
    """
    return {name: found for name, found in versions().items() if name not in ("datasets", "python")}
