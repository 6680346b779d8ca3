"""The optimizer of a task, and what its learning rate does."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from papa_lightning.attention import MatrixHeads
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.either_lightning import L, LightningModule, OptimizerLRScheduler
from papa_lightning.encoders import swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.tasks.regimes import (
    REGIMES,
    Learners,
    Regime,
    drop_unknown_gradients,
    learning_mixers,
    project_constants,
    regime_of,
)


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


class LearningTask(LightningModule):
    """The part of `EncoderTask` that knows the regimes: what requires a gradient, optimizer, and constants that learn.

    Attributes:
        encoder: The encoder.
        probe: The probe.
    """

    encoder: PreTrainedModel
    probe: nn.Module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW for all parameters that require a gradient, and the learning rate schedule.

        Returns:
            The optimizer, with a schedule that moves at every step unless the learning rate is constant throughout.

        Raises:
            PapaError: If the schedule needs the number of steps and the Trainer has no limit, or if the regime trains
                constants and the encoder has none.
        """
        constants = [mixer.constants for mixer in self._learning_mixers()]
        if self.learners.constants and not constants:
            raise PapaError(
                f"regime is {self.regime!r}, but the encoder has no constant heads whose constants could learn: add "
                "the callback ConstantAttention, or pass constants, with heads other than none."
            )
        names = ("learning_rate", "weight_decay", "constants_learning_rate")
        optimizer = build_optimizer(self, constants, **{name: self.hparams[name] for name in names})
        if self.hparams["schedule"] == "constant" and self.hparams["warmup_share"] == 0:
            return optimizer
        return with_schedule(optimizer, self.trainer, self.hparams["schedule"], self.hparams["warmup_share"])

    @property
    def regime(self) -> Regime:
        """What learns, by name."""
        return regime_of(self.hparams["regime"], self.hparams["freeze_encoder"])

    @property
    def learners(self) -> Learners:
        """What learns."""
        return REGIMES[self.regime]

    def setup(self, stage: str) -> None:
        """Unfreeze the constants of an encoder that a callback has swapped by now, before DDP wraps the task.

        Args:
            stage: Of the Trainer; all are alike.
        """
        self._apply_regime()

    def on_train_start(self) -> None:
        """Divide the rows of constants that learn by their sums; calibration has made them by now."""
        project_constants(self._learning_mixers())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave rows of constants about which nothing is known as they are."""
        drop_unknown_gradients(self._learning_mixers())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and make the rows of constants that learn distributions again."""
        super().optimizer_step(*args, **kwargs)
        project_constants(self._learning_mixers())

    def on_train_epoch_end(self) -> None:
        """Note which tokens have a weight on themselves: learning may have taken it away."""
        for mixer in self._learning_mixers():
            mixer.certain_length = first_zero_of_diagonal(mixer.constants.detach())

    def _learning_mixers(self) -> list[MatrixHeads]:
        if not self.learners.constants:
            return []
        return learning_mixers(swapped_layers(self.encoder))

    def _apply_regime(self) -> None:
        if not self.learners.probe:
            self.probe.requires_grad_(False)
        for mixer in self._learning_mixers():
            if not isinstance(mixer.constants, nn.Parameter):
                mixer.learn_constants()
