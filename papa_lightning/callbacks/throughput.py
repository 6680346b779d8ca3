"""The callback that measures speed, memory and size of a fit."""

import time
from typing import Any

import torch

from papa_lightning.either_lightning import Callback, L
from papa_lightning.errors import PapaError
from papa_lightning.runtime import AllocationWatch, forget_peak, peak_memory


class Throughput(Callback):
    """Log speed, memory and size of a fit when it ends, to every logger.

    - ``throughput/steps_per_second``: optimizer steps by the wall clock, loading of data included, validation and the
      first `warmup_steps` left out.
    - ``throughput/step_memory_bytes``: the most that the second step allocates beyond what is there before it, without
      parameters and optimizer; exact on CUDA and the CPU (:class:`~papa_lightning.runtime.AllocationWatch`).
    - ``throughput/peak_memory_bytes``: the most memory after that step: what torch has allocated on CUDA, else the
      resident memory of the process, where the system tells (Linux).
    - ``throughput/parameters``: number of trainable parameters.

    Args:
        warmup_steps: Steps at the beginning, which allocate, compile and are watched, whose time does not count.

    Attributes:
        facts: The logged values, by name without ``throughput/``; empty before a fit has ended.

    Raises:
        PapaError: For `warmup_steps` below 2.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[Throughput(warmup_steps=10)], logger=False)
    """

    def __init__(self, warmup_steps: int = 3) -> None:
        if warmup_steps < 2:
            raise PapaError(
                f"warmup_steps is {warmup_steps!r}, but must be at least 2: the memory of the second step is watched."
            )
        self.warmup_steps = warmup_steps
        self.facts: dict[str, float] = {}
        self._clock = _Clock()
        self._steps_before = 0
        self._watch: AllocationWatch | None = None
        self._watched = False
        self._freed = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset clock and peak of memory."""
        self.facts, self._clock, self._watched = {}, _Clock(), False
        self._steps_before = trainer.global_step
        forget_peak(pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the memory of the second step, and start the clock once the first steps are over."""
        steps = trainer.global_step - self._steps_before
        if steps == 1 and not self._watched:
            self._watch, self._watched = AllocationWatch(pl_module.device), True
            # The gradients of the first step are freed in the second, which only CUDA's allocator counts.
            gradients = [one.grad for one in pl_module.parameters() if one.grad is not None]
            self._freed = sum(one.nbytes for one in gradients) if pl_module.device.type == "cuda" else 0
            self._watch.start()
        if not self._clock.started and steps >= self.warmup_steps:
            _wait(pl_module.device)
            self._steps_before = trainer.global_step
            self._clock.run()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the memory of the watched step."""
        if self._watch is not None:
            found, self._watch = self._watch.stop(), None
            if found is not None:
                self.facts["step_memory_bytes"] = float(found + self._freed)
            forget_peak(pl_module.device)  # the profiler took memory as well

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no profiler running."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        _wait(pl_module.device)
        self._clock.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restart the clock."""
        if self._clock.started:
            _wait(pl_module.device)
            self._clock.run()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the facts."""
        _wait(pl_module.device)
        self._clock.pause()
        self.facts["parameters"] = float(sum(one.numel() for one in pl_module.parameters() if one.requires_grad))
        if self._clock.seconds > 0 and trainer.global_step > self._steps_before:
            self.facts["steps_per_second"] = (trainer.global_step - self._steps_before) / self._clock.seconds
        if (peak := peak_memory(pl_module.device)) is not None:
            self.facts["peak_memory_bytes"] = float(peak)
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


def _wait(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
