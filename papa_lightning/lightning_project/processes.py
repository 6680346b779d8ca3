"""What the processes of a run agree on, before one of them goes on alone or waits for the others for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from papa_lightning.either_lightning import L
from papa_lightning.errors import CalibrationError, PapaError

T = TypeVar("T")


def all_or_none(trainer: L.Trainer, task: Callable[[], T]) -> T:
    """Run the share of this process, and fail on every process where one failed.

    Args:
        trainer: With its strategy set up. Every process must call it.
        task: The share, without anything in which processes wait for each other.

    Raises:
        CalibrationError: When it failed on another process, which says why.
    """
    if trainer.world_size == 1:
        return task()
    error: Exception | None = None
    try:
        done = task()
    except Exception as raised:  # raised below, when the others know
        error = raised
    failed = torch.tensor(float(error is not None), device=trainer.strategy.root_device)
    failures = trainer.strategy.reduce(failed, reduce_op="sum")
    if error is not None:
        raise error
    if failures:
        raise CalibrationError("the calibration failed on another process, whose error says why: see its output.")
    return done


def on_first(trainer: L.Trainer, task: Callable[[], T]) -> T:
    """Run something on the first process, and give what it returned, or raise what it refused, on all.

    Args:
        trainer: With its strategy set up. Every process must call it.
        task: What the first process does.
    """
    outcome: tuple[T | None, str | None] = (None, None)
    if trainer.is_global_zero:
        try:
            outcome = (task(), None)
        except PapaError as error:
            outcome = (None, str(error))
    done, refused = trainer.strategy.broadcast(outcome)
    if refused is not None:
        raise CalibrationError(refused)
    return done  # type: ignore[return-value]
