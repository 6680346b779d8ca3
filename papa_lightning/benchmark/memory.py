"""Memory of one pass beside what is there before: the high-water mark of what PyTorch allocates."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable
from itertools import accumulate

import torch
from torch import nn
from torch.autograd.profiler import profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes that are allocated at one moment of a run, beyond those of before.

    On CUDA, what PyTorch's own allocator counts. On the CPU, every allocation of PyTorch's allocator as its profiler
    records them, also those inside an operation; not what the mathematics library takes for itself.

    Args:
        run: A pass; what it keeps afterwards counts too.
        device: Where it runs.

    Returns:
        Bytes; None for devices whose memory cannot be counted so.

    Example:
        >>> peak_bytes(lambda: [torch.ones(256), torch.ones(256)] and None, torch.device("cpu"))
        2048
    """
    if device.type == "cuda":
        return _peak_on_cuda(run, device)
    return _peak_on_cpu(run) if device.type == "cpu" else None


def _peak_on_cuda(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library would print when it starts and stops
    with profile(profile_memory=True) as recorded:
        run()
    events = recorded.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return int(max(accumulate((change for _, change in sorted(changes, key=lambda one: one[0])), initial=0)))


def held_bytes(module: nn.Module, without: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module that another one does not share.

    Args:
        module: Any.
        without: Whose memory does not count.
    """
    shared = set(_storages(without))
    return sum(size for key, size in dict(_sized(module)).items() if key not in shared)


def _storages(module: nn.Module) -> Iterable[Hashable]:
    return (key for key, _ in _sized(module))


def _sized(module: nn.Module) -> Iterable[tuple[Hashable, int]]:
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        yield (storage.data_ptr(), storage.nbytes()), storage.nbytes()
