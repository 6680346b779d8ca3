"""Regimes: which of probe, encoder and constants learn, and how constants that learn stay distributions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention import MatrixHeads, TokenMixer
from papa_lightning.attention.functional import EPS, accumulation_dtype
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.either_lightning import LightningModule, OptimizerLRScheduler
from papa_lightning.encoders import swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.optimizers import keep_apart
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


def learning_mixers(mixers: Sequence[TokenMixer]) -> list[MatrixHeads]:
    """Layers with constants that can learn; an empty parameter would get no gradient and stop DDP."""
    return [mixer for mixer in mixers if isinstance(mixer, MatrixHeads) and mixer.constants.numel()]


def learning_constants(mixer: TokenMixer) -> tuple[str, ...]:
    """Names of the parameters of a layer that are constants to learn."""
    return ("constants",) if learning_mixers([mixer]) else ()


def project_rows(constants: Tensor) -> Tensor:
    r"""Make every row a distribution, :math:`C_{ij} \leftarrow \max(C_{ij}, 0) / \sum_k \max(C_{ik}, 0)`, (..., T, T).

    Dividing changes nothing that the encoder computes, because constant attention divides each row by its mass over the
    real tokens anyway. A row of zeros, whose query calibration never saw, stays; one whose entries have all fallen
    below 0 starts again from equal weights for the keys that it had.

    Example:
        >>> project_rows(torch.tensor([[3.0, -1.0, 1.0], [0.0, 0.0, 0.0], [-2.0, -1.0, 0.0]]))
        tensor([[0.7500, 0.0000, 0.2500],
                [0.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000]])
    """
    exact = constants.to(accumulation_dtype(constants.dtype))
    kept = exact.clamp_min(0.0)
    fallen = kept.sum(dim=-1, keepdim=True) <= EPS
    kept = torch.where(fallen, (exact != 0).to(exact.dtype), kept)
    return (kept / kept.sum(dim=-1, keepdim=True).clamp_min(EPS)).to(constants.dtype)


@torch.no_grad()
def project_constants(mixers: Sequence[MatrixHeads]) -> None:
    """Apply :func:`project_rows` to the constants of the given layers, in place, within the reach of each layer."""
    for mixer in mixers:
        mixer.constants.copy_(project_rows(mixer.reach.cut(mixer.constants)))


@torch.no_grad()
def drop_unknown_gradients(mixers: Sequence[MatrixHeads]) -> None:
    """Set the gradient of rows of zeros to 0.

    Constant attention divides such a row by the smallest number that it allows, so that its gradient is huge and says
    nothing; clipping by norm would then silence all others.
    """
    for mixer in mixers:
        if mixer.constants.grad is not None:
            unknown = (mixer.constants == 0).all(dim=-1, keepdim=True)
            mixer.constants.grad.masked_fill_(unknown, 0.0)


def note_certain_length(mixers: Sequence[MatrixHeads]) -> None:
    """Look again at which positions have a weight on themselves, because learning may have taken it away."""
    for mixer in mixers:
        mixer.certain_length = first_zero_of_diagonal(mixer.constants.detach())


class LearningTask(LightningModule):
    """The part of `EncoderTask` that handles regimes: required gradients, optimizer, and constants that learn."""

    encoder: PreTrainedModel
    probe: nn.Module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW for all parameters that require a gradient, and a schedule that moves at every step.

        Raises:
            PapaError: If the schedule needs the number of steps and the Trainer has no limit, or if the regime trains
                constants and the encoder has none.
        """
        if self.learners.constants and not self._learning_mixers():
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

    def setup(self, stage: str) -> None:
        """Unfreeze the constants of an encoder that a callback has swapped by now, before DDP wraps the task."""
        self._apply_regime()

    def on_train_start(self) -> None:
        """Divide the rows of constants that learn by their sums; calibration has made them by now."""
        project_constants(self._learning_mixers())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep rows of constants that calibration never saw unchanged."""
        drop_unknown_gradients(self._learning_mixers())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and make the rows of constants that learn distributions again."""
        super().optimizer_step(*args, **kwargs)
        project_constants(self._learning_mixers())

    def on_train_epoch_end(self) -> None:
        """Look again at which positions have a weight on themselves."""
        note_certain_length(self._learning_mixers())

    def _learning_mixers(self) -> list[MatrixHeads]:
        return learning_mixers(swapped_layers(self.encoder)) if self.learners.constants else []

    def _apply_regime(self) -> None:
        if not self.learners.probe:
            self.probe.requires_grad_(False)
        for mixer in self._learning_mixers():
            if not isinstance(mixer.constants, nn.Parameter):
                mixer.learn_constants()
        if self.learners.constants and swapped_layers(self.encoder):
            keep_apart(self.encoder, learning_constants, self.hparams["constants_learning_rate"])
