"""The run behind ``papa calibrate``: calibrate, write the file, stop before the first training step."""

from __future__ import annotations

from papa_lightning.callbacks.constant_attention import ConstantAttention
from papa_lightning.either_lightning import Callback, L, rank_zero_info


class CalibrationRun(Callback):
    """Calibrate as a ConstantAttention would, into a file, and end ``fit`` before it trains.

    Args:
        calibration: Says how: its max_length, encoder, batch_size, and any method that a subclass overrides. A
            constants file that it names is not used.
        output: Where the constants are written.
    """

    def __init__(self, calibration: ConstantAttention, output: str) -> None:
        calibration.constants = None
        calibration.save_constants = False
        self.calibration, self.output = calibration, output

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Swap the encoder, so that bad arguments show before the data are read."""
        self.calibration.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate, write, stop."""
        constants = self.calibration.calibrate(trainer, pl_module)
        if trainer.is_global_zero:
            constants.save(self.output)
        rank_zero_info(f"Constants are in {self.output}.")
        trainer.should_stop = True
