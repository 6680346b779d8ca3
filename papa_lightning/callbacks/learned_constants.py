"""The callback that makes heads constant and trains their constants."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from papa_lightning.attention import MatrixHeads, TokenMixer
from papa_lightning.callbacks.calibrating import check_rate, refuse_sharding
from papa_lightning.callbacks.constant_attention import ConstantAttention
from papa_lightning.either_lightning import L
from papa_lightning.encoders import HeadSelection, swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.encoder import discover_encoder
from papa_lightning.tasks.regimes import (
    drop_unknown_gradients,
    learning_constants,
    learning_mixers,
    note_certain_length,
    project_constants,
)


class LearnedConstants(ConstantAttention):
    """Make heads constant as :class:`~papa_lightning.ConstantAttention` does, and let their constants learn.

    The constants start from the average and are a parameter group of their own, without weight decay. They stay
    distributions: after every batch each row is cut at 0 and divided by its sum. Rows of which calibration saw nothing
    stay 0. Use it in place of ConstantAttention; the encoder may be frozen. The tasks of papa_lightning do the same in
    the regimes with ``constants`` in their names.

    Args:
        max_length: T, the longest sequence; as in ConstantAttention.
        heads: The heads that become constant; as in ConstantAttention.
        ranking: Path of a :class:`~papa_lightning.HeadRanking` file.
        learning_rate: Learning rate of the constants, whose entries are of the order 1/T. None takes that of the
            optimizer's first group.
        constants: Path of a constants file to start from instead of calibrating.
        encoder: Attribute that holds the encoder, when the module has several.
        batch_size: Sequences a batch of the calibration pass; None takes that of the train loader.
        save_constants: Write the constants of the pass to ``constants.safetensors`` in the logger's folder.

    Raises:
        PapaError: For invalid arguments, strategies that shard the encoder, and heads that have no constants.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[LearnedConstants(max_length=64, learning_rate=1e-3)], logger=False)
    """

    def __init__(
        self,
        max_length: int | None = None,
        heads: HeadSelection = "all",
        ranking: str | None = None,
        learning_rate: float | None = None,
        constants: str | None = None,
        encoder: str | None = None,
        batch_size: int | None = None,
        save_constants: bool = True,
    ) -> None:
        super().__init__(max_length, heads, ranking, constants, encoder, batch_size, save_constants)
        self.learning_rate = check_rate(learning_rate)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Swap the encoder; refuse strategies that would shard the constants."""
        parts = "the constants, so that their rows cannot be kept distributions"
        refuse_sharding(trainer, parts, "train them on one device or with strategy ddp")
        super().setup(trainer, pl_module, stage)

    def swap(self, encoder: PreTrainedModel, max_length: int) -> None:
        """Swap to kind "constant", with constants that are parameters; see :meth:`CalibratingCallback.swap`."""
        super().swap(encoder, max_length)
        mixers = learning_mixers(swapped_layers(encoder))
        if not mixers:
            raise PapaError(f"heads is {self.heads!r}, so there are no constants that could learn: choose some heads.")
        for mixer in mixers:
            if not isinstance(mixer.constants, torch.nn.Parameter):
                mixer.learn_constants()

    def own_parameters(self, layer: TokenMixer) -> Iterable[str]:
        """The constants; see :meth:`CalibratingCallback.own_parameters`."""
        return learning_constants(layer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate, unless there are constants already, and divide their rows by their sums."""
        super().on_train_start(trainer, pl_module)
        if not self._restored:  # a resumed run goes on with the same numbers, to the last bit
            project_constants(self._mixers(pl_module))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep rows of constants that calibration never saw unchanged."""
        drop_unknown_gradients(self._mixers(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the rows of the constants distributions again."""
        project_constants(self._mixers(pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look again at which positions have a weight on themselves."""
        note_certain_length(self._mixers(pl_module))

    def _mixers(self, pl_module: L.LightningModule) -> list[MatrixHeads]:
        return learning_mixers(swapped_layers(discover_encoder(pl_module, self.encoder)))
