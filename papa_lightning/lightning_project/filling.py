"""Constants as a run uses them: filled where calibration saw nothing, unless its preset says otherwise."""

from papa_lightning.calibration import AttentionConstants, describe_filling
from papa_lightning.either_lightning import L, rank_zero_info


def presets_of(trainer: L.Trainer, module: L.LightningModule) -> list[object]:
    """The presets of a module and of the Trainer's datamodule, None where they have none."""
    parts = (getattr(module, "hparams", None), getattr(trainer, "datamodule", None))
    return [getattr(part, "preset", None) for part in parts]


def constants_in_use(constants: AttentionConstants, fill: bool | None, *presets: object) -> AttentionConstants:
    """The constants that heads get, filled or as they are.

    Args:
        constants: An average.
        fill: Whether to fill it. None fills where the presets that are known are all "default", and leaves constants
            alone that were not calibrated (they have no variance), because their pair counts say nothing.
        presets: Presets of the parts of a run; other values than text are unknown.
    """
    if fill is None:
        known = {preset for preset in presets if isinstance(preset, str)}
        fill = known == {"default"} and constants.variance is not None
    return constants.filled() if fill else constants


def log_filling(constants: AttentionConstants) -> None:
    """Log how many pairs of positions were filled, if any."""
    if line := describe_filling(constants):
        rank_zero_info(f"Constants: {line}.")
