"""Images for whatever loggers a Trainer has."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from papa_lightning.either_lightning import L, Logger, is_a
from papa_lightning.files.writing import write_atomically


def log_image(trainer: L.Trainer, name: str, png: bytes, step: int) -> list[Logger]:
    """Give an image to every logger of a Trainer, each in its own way; call it on the first process only.

    TensorBoard, Weights & Biases and MLflow show it beside the metrics; for a CSVLogger it becomes a file in the
    folder ``images`` of the logs.

    Args:
        trainer: With its loggers.
        name: With slashes as in names of metrics.
        png: The image.
        step: Of the optimizer.

    Returns:
        The loggers that take no images.
    """
    left_out = []
    logger: Any
    for logger in trainer.loggers:
        if is_a(logger, "TensorBoardLogger"):
            logger.experiment.add_image(name, _pixels(png), step, dataformats="HWC")
        elif is_a(logger, "WandbLogger"):
            logger.log_image(name, [_pixels(png)], step)
        elif is_a(logger, "MLFlowLogger"):
            file = f"{name}/step-{step:06d}.png"
            logger.experiment.log_image(logger.run_id, _pixels(png), artifact_file=file)
        elif is_a(logger, "CSVLogger"):
            write_atomically(Path(logger.log_dir) / "images" / f"{name.replace('/', '-')}-{step:06d}.png", png)
        else:
            left_out.append(logger)
    return left_out


def _pixels(png: bytes) -> NDArray[np.uint8]:
    from matplotlib.image import imread  # for those who ask for images

    shares = np.asarray(imread(io.BytesIO(png)), dtype=np.float64)  # red, green, blue and opacity, 0 to 1
    return np.rint(shares[..., :3] * 255).astype(np.uint8)
