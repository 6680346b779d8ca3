"""The optimizer of a task, and what its learning rate does."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from papa_lightning.either_lightning import L, OptimizerLRScheduler
from papa_lightning.errors import PapaError


def build_optimizer(
    module: nn.Module,
    constants: Sequence[Tensor],
    learning_rate: float,
    weight_decay: float,
    constants_learning_rate: float | None,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Build AdamW for all parameters of a module that require a gradient.

    Args:
        module: The task.
        constants: Those of its parameters that are constants: a group of their own, without weight decay, which
            dividing each row by its sum would undo.
        learning_rate: Of all but the constants.
        weight_decay: Of all but the constants.
        constants_learning_rate: Of the constants; None takes `learning_rate`.
        fused: Whether a step is one kernel; None leaves it to torch, which gradient clipping of the Trainer wants.

    Returns:
        The optimizer, with the constants as its last group if they learn.
    """
    apart = {id(parameter) for parameter in constants if parameter.requires_grad}
    rest = [one for one in module.parameters() if one.requires_grad and id(one) not in apart]
    groups = [{"params": rest, "weight_decay": weight_decay}] if rest else []
    if apart:
        rate = learning_rate if constants_learning_rate is None else constants_learning_rate
        groups.append({"params": [one for one in constants if id(one) in apart], "weight_decay": 0.0, "lr": rate})
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def with_schedule(
    optimizer: torch.optim.Optimizer, trainer: L.Trainer, schedule: str, warmup_share: float
) -> OptimizerLRScheduler:
    """Add the learning rate schedule to an optimizer.

    Args:
        optimizer: The optimizer.
        trainer: Knows the number of steps.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        warmup_share: Share of all steps over which the rate rises from 0.

    Returns:
        What ``configure_optimizers`` returns; the schedule moves at every step.

    Raises:
        PapaError: If the schedule needs the number of steps and the Trainer has no limit.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise PapaError(
            f"schedule {schedule!r} with warmup_share={warmup_share} needs the number of training steps, but the "
            "Trainer has no limit: set max_epochs or max_steps."
        )
    scheduler = build_schedule(optimizer, int(steps), schedule, warmup_share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def build_schedule(
    optimizer: torch.optim.Optimizer, steps: int, schedule: str, warmup_share: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the learning rate schedule of an optimizer; it moves at every step.

    Args:
        optimizer: The optimizer.
        steps: Of the whole training.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        warmup_share: Share of all steps over which the rate rises from 0.

    Returns:
        The schedule.
    """
    scheduler: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        "constant_with_warmup" if schedule == "constant" else schedule,
        optimizer,
        num_warmup_steps=round(warmup_share * steps),
        num_training_steps=steps,
    )
    return scheduler
