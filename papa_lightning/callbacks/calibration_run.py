"""The callback behind ``papa calibrate``, which ends a fit after the calibration pass."""

from papa_lightning.callbacks.constant_attention import ConstantAttention
from papa_lightning.either_lightning import Callback, L, rank_zero_info
from papa_lightning.errors import CalibrationError


class CalibrationRun(Callback):
    """Calibrate as ConstantAttention does, write a constants file, and end ``fit`` before it trains.

    Args:
        calibration: The callback whose max_length, encoder, batch_size and methods are used, not its constants file.
        output: Path of the constants file to write.
    """

    needs_labels = False
    """Whether the data module must have labels."""

    def __init__(self, calibration: ConstantAttention, output: str) -> None:
        calibration.constants = None
        calibration.save_constants = False
        calibration.fill_unseen = False  # the file has the average as it is, and no head is used
        self.calibration, self.output, self._calibrated = calibration, output, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Swap the encoder, so that bad arguments show before the data are read."""
        self.calibration.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate, write the file, and stop."""
        constants = self.calibration.calibrate(trainer, pl_module)
        self._calibrated = True
        trainer.should_stop = True
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(f"fast_dev_run is a trial of one or a few batches: nothing was written to {self.output}.")
            return
        if trainer.is_global_zero:
            constants.save(self.output)
        rank_zero_info(f"Constants are in {self.output}.")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise an error if there was nothing to train on, so that no file was written."""
        if not self._calibrated:
            raise CalibrationError(
                f"there was nothing to calibrate on, so {self.output} was not written: the train data are empty, or "
                "limit_train_batches, max_epochs or max_steps is 0. Let them allow a batch."
            )
