"""Regimes: which of probe, encoder and constants learn."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, NamedTuple, cast

from torch import nn
from transformers import PreTrainedModel

from papa_lightning.callbacks.learned_constants import learning_mixers, train_constants
from papa_lightning.either_lightning import LightningModule, OptimizerLRScheduler
from papa_lightning.errors import PapaError
from papa_lightning.tasks.recipe import Recipe

Regime = Literal["probe", "fine_tune", "fine_tune_constants", "probe_constants", "constants"]


class Learners(NamedTuple):
    """Parts of a task that learn: the probe, the parameters of the encoder itself, the constants of its heads."""

    probe: bool
    encoder: bool
    constants: bool


#: Learning parts by regime.
REGIMES: Mapping[str, Learners] = {
    "probe": Learners(probe=True, encoder=False, constants=False),
    "fine_tune": Learners(probe=True, encoder=True, constants=False),
    "fine_tune_constants": Learners(probe=True, encoder=True, constants=True),
    "probe_constants": Learners(probe=True, encoder=False, constants=True),
    "constants": Learners(probe=False, encoder=False, constants=True),
}


class LearningTask(LightningModule):
    """The part of `EncoderTask` that handles regimes: required gradients and optimizer."""

    encoder: PreTrainedModel
    probe: nn.Module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW for all parameters that require a gradient, and a schedule that moves at every step."""
        if self.learners.constants and not learning_mixers(self.encoder):
            raise PapaError(
                f"regime is {self.regime!r}, but the encoder has no constant heads whose constants could learn: add "
                "the callback ConstantAttention, or pass constants, with heads other than none."
            )
        optimizer = self.recipe.make_optimizer(self)
        if not self.recipe.has_schedule:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise PapaError(
                f"schedule {self.recipe.schedule!r} with warmup_share={self.recipe.warmup_share} needs the number of "
                "training steps, but the Trainer has no limit: set max_epochs or max_steps."
            )
        schedule = self.recipe.make_schedule(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def recipe(self) -> Recipe:
        """Optimizer, learning rate schedule and dropout."""
        return Recipe(**{field.name: self.hparams[field.name] for field in fields(Recipe)})

    @property
    def regime(self) -> Regime:
        """Name of the regime."""
        regime, freeze_encoder = self.hparams["regime"], self.hparams["freeze_encoder"]
        if regime is None:
            return "probe" if freeze_encoder else "fine_tune"
        if regime not in REGIMES:
            raise PapaError(f"regime is {regime!r}: choose from {', '.join(REGIMES)}.")
        # True is the default of freeze_encoder, so only False contradicts.
        if not freeze_encoder and not REGIMES[regime].encoder:
            raise PapaError(
                f"freeze_encoder is False, but regime={regime!r} freezes the encoder: leave freeze_encoder out, or "
                'pass regime="fine_tune" or "fine_tune_constants".'
            )
        return cast(Regime, regime)

    @property
    def learners(self) -> Learners:
        """Parts that learn."""
        return REGIMES[self.regime]

    def _apply_regime(self) -> None:
        if not self.learners.probe:
            self.probe.requires_grad_(False)
        if self.learners.constants:
            train_constants(self.encoder, self.hparams["constants_learning_rate"])
