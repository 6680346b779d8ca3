"""Regimes: which of probe, encoder and constants learn."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, NamedTuple, cast

from torch import nn

from papa_lightning.errors import PapaError
from papa_lightning.tasks.encoding import EncodingTask
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


class LearningTask(EncodingTask):
    """The part of `EncoderTask` that handles regimes: the parameters that require gradients."""

    probe: nn.Module

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

    @property
    def trains_encoder(self) -> bool:
        """See `EncodingTask.trains_encoder`."""
        return self.learners.encoder

    @property
    def trains_constants(self) -> bool:
        """See `EncodingTask.trains_constants`."""
        return self.learners.constants

    @property
    def preset(self) -> str:
        """See `EncodingTask.preset`."""
        return str(self.hparams["preset"])

    def choose_parameters(self) -> None:
        """Freeze the probe in a regime without it; see `EncodingTask.choose_parameters`."""
        if not self.learners.probe:
            self.probe.requires_grad_(False)
        super().choose_parameters()

    @property
    def learning_argument(self) -> str:
        """See `EncodingTask.learning_argument`."""
        return f"regime is {self.regime!r}"
