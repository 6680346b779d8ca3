"""Versions, devices and memory: the facts that a measurement depends on."""

import ctypes
import gc
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import profile

from papa_lightning.errors import PapaError
from papa_lightning.version import __version__

_PACKAGES = ("torch", "transformers", "datasets", "torchmetrics")


def find_device(name: str) -> torch.device:
    """The device of a name that PyTorch knows; ``"auto"`` is an accelerator where there is one, else the CPU."""
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


# Asked while torch.compile traces: the traces of torch 2.11 and older versions answer yes.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exporting() -> bool:
    """Whether a graph is being exported, which must run elsewhere too; not so in torch.compile."""
    return torch.compiler.is_exporting()


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Processor, device, threads, system and versions behind a measurement; no path and no name of a machine."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    gpu = {"gpu": _gpu_facts(device)} if device.type == "cuda" else {}
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device.type if device.type == "cpu" else f"{device.type} ({kind})",
        **gpu,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def _gpu_facts(device: torch.device) -> dict[str, str]:
    """Capability, memory, CUDA or HIP, and what the machine tells of the driver and the clock of a GPU."""
    properties = torch.cuda.get_device_properties(device)
    found = {
        "capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 1e9:.0f} GB",
        **({"CUDA": torch.version.cuda} if torch.version.cuda else {"HIP": str(torch.version.hip)}),
    }
    asked = ("driver_version", "clocks.sm", "clocks.max.sm")
    with suppress(OSError, subprocess.SubprocessError, ValueError, AttributeError):  # no tool, or no uuid
        tool = shutil.which("nvidia-smi") or ""
        words = [tool, f"--id=GPU-{properties.uuid}", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
        printed = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout
        driver, clock, highest = (part.strip() for part in printed.split(","))
        return found | {"driver": driver, "clock": f"{clock} of {highest}"}
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        if number := re.search(r"\d+\.\d+(\.\d+)?", text):
            found["driver"] = number[0]
    with suppress(ImportError, RuntimeError, AttributeError):  # it needs a package that few have
        found["clock"] = f"{torch.cuda.clock_rate(device)} MHz"
        return found
    if rate := getattr(properties, "clock_rate", 0):  # not in all versions of torch
        found["clock"] = f"up to {rate / 1000:.0f} MHz"
    return found


def cpu_name() -> str:
    """Model of the processor."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


@contextmanager
def threads_of_torch(number: int | None) -> Iterator[None]:
    """Compute with a number of threads inside the ``with`` block; None does not change it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class AllocationWatch:
    """Largest memory that is allocated at one moment between start and stop, beyond the memory at the start.

    On CUDA it is what PyTorch's allocator counts, which forgets earlier peaks. On the CPU it is every allocation that
    PyTorch's profiler records, also inside an operation, but not the memory of mathematics libraries. Memory that was
    allocated before and is freed in between lowers the count on CUDA only. Other devices, and a CPU on which another
    profiler runs, cannot be watched.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0
        self._profile: Any = None

    def start(self) -> None:
        """Start counting."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif self.device.type == "cpu" and not torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library would print when it starts and stops
            self._profile = profile(profile_memory=True)
            self._profile.__enter__()

    def stop(self) -> int | None:
        """Stop counting: bytes, or None where they cannot be counted."""
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
    """Bytes of memory that a call allocates at most, with what it keeps, as :class:`AllocationWatch` counts."""
    watch = AllocationWatch(device)
    watch.start()
    try:
        run()
    finally:
        found = watch.stop()
    return found


def held_bytes(module: nn.Module, without: nn.Module) -> int:
    """Bytes of the parameters and buffers that a module does not share with another."""
    shared = dict(_sized(without))
    return sum(size for key, size in dict(_sized(module)).items() if key not in shared)


def peak_memory(device: torch.device) -> int | None:
    """Largest bytes in use since :func:`forget_peak`: allocated by PyTorch on CUDA, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def forget_peak(device: torch.device) -> None:
    """Reset the peak of :func:`peak_memory`; where not permitted, it stays the peak of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: see proc(5), the peak of the resident memory


def release_memory() -> None:
    """Return freed memory to the system, so that it does not hide the memory of what follows."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _sized(module: nn.Module) -> Iterable[tuple[Hashable, int]]:
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        yield (storage.data_ptr(), storage.nbytes()), storage.nbytes()


@lru_cache
def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    found = {name: version(name) for name in _PACKAGES}
    return found | {"papa_lightning": __version__, "python": platform.python_version()}


def computing_versions() -> dict[str, str]:
    """The versions that change numbers computed from the same rows; Python and the readers of data do not.

    Example:
        >>> sorted(computing_versions())
        ['papa_lightning', 'torch', 'torchmetrics', 'transformers']
    """
    return {name: found for name, found in versions().items() if name not in ("datasets", "python")}
