"""How fast a fit was, how much memory it took, and how many parameters it trained."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from papa_lightning.exceptions import PapaError


class Throughput(L.Callback):
    """Log speed, memory and size of a fit when it ends, to every logger.

    - ``throughput/steps_per_second``: optimizer steps by the wall clock, loading of data included, validation and the
      first `warmup_steps` left out.
    - ``throughput/peak_memory_bytes``: the most memory at any moment of the fit. On a CUDA device what torch has
      allocated there, else the resident memory of the whole process, where the system tells (Linux).
    - ``throughput/added_memory_bytes``: how far that is above the memory in use when the training began: gradients,
      the state of the optimizer, and what a step keeps for the backward pass.
    - ``throughput/parameters``: those that learn.

    Args:
        warmup_steps: Steps at the beginning that do not count: the first ones allocate and compile.

    Attributes:
        facts: What was logged, by name without ``throughput/``; empty before a fit has ended.

    Raises:
        PapaError: For a negative `warmup_steps`.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[Throughput(warmup_steps=10)], logger=False)
    """

    def __init__(self, warmup_steps: int = 3) -> None:
        if warmup_steps < 0:
            raise PapaError(f"warmup_steps is {warmup_steps!r}, but must be at least 0.")
        self.warmup_steps = warmup_steps
        self.facts: dict[str, float] = {}
        self._clock = _Clock()
        self._steps_before = 0
        self._memory_before: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget earlier fits, and earlier peaks of memory."""
        self.facts, self._clock = {}, _Clock()
        self._steps_before = trainer.global_step
        self._memory_before = memory_in_use(pl_module.device)
        forget_peak(pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock once the first steps are over."""
        if not self._clock.started and trainer.global_step - self._steps_before >= self.warmup_steps:
            _wait(pl_module.device)
            self._steps_before = trainer.global_step
            self._clock.run()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        _wait(pl_module.device)
        self._clock.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the clock go on."""
        if self._clock.started:
            _wait(pl_module.device)
            self._clock.run()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the facts."""
        _wait(pl_module.device)
        self._clock.pause()
        learning = sum(one.numel() for one in pl_module.parameters() if one.requires_grad)
        self.facts = {"parameters": float(learning)}
        if self._clock.seconds > 0 and trainer.global_step > self._steps_before:
            self.facts["steps_per_second"] = (trainer.global_step - self._steps_before) / self._clock.seconds
        peak = peak_memory(pl_module.device)
        if peak is not None and self._memory_before is not None:
            self.facts["peak_memory_bytes"] = float(peak)
            self.facts["added_memory_bytes"] = float(max(peak - self._memory_before, 0))
        logged = {f"throughput/{name}": value for name, value in self.facts.items()}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)


class _Clock:
    """A stop watch that can be paused."""

    def __init__(self) -> None:
        self.seconds, self.started = 0.0, False
        self._since: float | None = None

    def run(self) -> None:
        self.started, self._since = True, time.perf_counter()

    def pause(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


def memory_in_use(device: torch.device) -> int | None:
    """Bytes in use now; see :class:`Throughput`. None where the system does not tell."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use since :func:`forget_peak`. None where the system does not tell."""
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


def _wait(device: torch.device) -> None:
    """Until the device has done what it was asked for: its work goes on behind the program."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
