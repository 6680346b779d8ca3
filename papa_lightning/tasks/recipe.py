"""Recipes of training: optimizer and learning rate schedule, and for a probe its dropout."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import nn
from transformers import get_scheduler

from papa_lightning.checks import check_choice
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.optimizers import parameter_groups

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Optimization:
    """AdamW and a learning rate schedule.

    Args:
        learning_rate: Learning rate of AdamW, after the warm-up.
        weight_decay: Weight decay of AdamW.
        schedule: Learning rate after the warm-up: constant, or falling to 0 along a line or half a cosine.
        warmup_share: Share of all optimizer steps over which the learning rate rises from 0.

    Raises:
        PapaError: If one is out of its range.
    """

    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    schedule: Schedule = "constant"
    warmup_share: float = 0.0

    #: What messages write before the name of an argument.
    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_choice(f"{self.prefix}schedule", self.schedule, get_args(Schedule))
        self._check("learning_rate", self.learning_rate > 0, "above 0")
        self._check("weight_decay", self.weight_decay >= 0, "at least 0")
        self._check("warmup_share", 0 <= self.warmup_share <= 1, "a share from 0 to 1")

    def _check(self, name: str, valid: bool, wanted: str) -> None:
        if not valid:
            raise PapaError(f"{self.prefix}{name} is {getattr(self, name)!r}: pass a value that is {wanted}.")

    @property
    def has_schedule(self) -> bool:
        """Whether the learning rate changes during training."""
        return self.schedule != "constant" or self.warmup_share > 0

    def make_optimizer(self, module: nn.Module, fused: bool | None = None) -> torch.optim.Optimizer:
        """AdamW for all parameters that require a gradient; gradient clipping of the Trainer wants `fused` None."""
        groups = parameter_groups(module, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.learning_rate, fused=fused)

    def make_schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        """Learning rate schedule of an optimizer for a whole training, to be moved after every step."""
        scheduler: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
            "constant_with_warmup" if self.schedule == "constant" else self.schedule,
            optimizer,
            num_warmup_steps=round(self.warmup_share * steps),
            num_training_steps=steps,
        )
        return scheduler


@dataclass(frozen=True)
class Recipe(Optimization):
    """Optimizer, learning rate schedule and dropout of a probe.

    The defaults follow the published code (Hassid et al. 2022, arXiv 2211.03495): AdamW at 2e-5 with a constant
    schedule. Dropout and weight decay are not given there: 0.1 is the dropout that BERT and RoBERTa were trained with,
    0.01 the default of AdamW.

    Args:
        dropout: Dropout of the probe.

    Raises:
        PapaError: If one is out of its range.
    """

    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("dropout", 0 <= self.dropout < 1, "a share from 0 to below 1")
