"""The callback that logs constants and gates as images."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from papa_lightning.attention import GatedHeads, MatrixHeads
from papa_lightning.callbacks.calibrating import refuse_sharding
from papa_lightning.either_lightning import Callback, L, Logger, is_a, rank_zero_warn
from papa_lightning.encoders import encoder_shape, is_calibrated, swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import write_atomically
from papa_lightning.lightning_project.encoder import discover_encoder


def log_image(loggers: Iterable[Logger], name: str, png: bytes, step: int) -> list[Logger]:
    """Log an image with every logger, on the first process only; returns the loggers that take none."""
    left_out = []
    logger: Any
    for logger in loggers:
        if is_a(logger, "TensorBoardLogger"):
            logger.experiment.add_image(name, _pixels(png), step, dataformats="HWC")
        elif is_a(logger, "WandbLogger"):
            logger.log_image(name, [_pixels(png)], step)
        elif is_a(logger, "MLFlowLogger"):
            logger.experiment.log_image(logger.run_id, _pixels(png), artifact_file=f"{name}/step-{step:06d}.png")
        elif is_a(logger, "CSVLogger"):
            write_atomically(Path(logger.log_dir) / "images" / f"{name.replace('/', '-')}-{step:06d}.png", png)
        else:
            left_out.append(logger)
    return left_out


def _pixels(png: bytes) -> NDArray[np.uint8]:
    from matplotlib.image import imread  # imported late: matplotlib is slow to load

    shares = np.asarray(imread(io.BytesIO(png)), dtype=np.float64)  # red, green, blue and opacity, 0 to 1
    return np.rint(shares[..., :3] * 255).astype(np.uint8)


class AttentionImages(Callback):
    """Log the constants of an encoder as images, and its gates as heat maps.

    For encoders that another callback or the module swaps. ``attention/constants`` is drawn once a fit,
    ``attention/gates``, each head's share sigmoid(g) of dynamic attention, before the first step and after epochs.
    TensorBoard, Weights & Biases and MLflow show them; a CSVLogger gets PNG files in the folder ``images`` of its logs.

    Args:
        every_n_epochs: Epochs between two maps of the gates.
        encoder: Attribute that holds the encoder, when the module has several.

    Raises:
        PapaError: For invalid arguments, and with strategies that shard the encoder.

    Example:
        >>> from lightning import Trainer
        >>> from papa_lightning import HeadGates
        >>> trainer = Trainer(callbacks=[HeadGates(max_length=64), AttentionImages()], logger=False)
    """

    def __init__(self, every_n_epochs: int = 1, encoder: str | None = None) -> None:
        if every_n_epochs < 1:
            raise PapaError(f"every_n_epochs is {every_n_epochs}, but must be at least 1.")
        self.every_n_epochs, self.encoder = every_n_epochs, encoder
        self._drawn = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse sharded strategies, whose processes hold a part of the constants each."""
        remedy = "leave AttentionImages out, and draw the constants file on one device"
        refuse_sharding(trainer, "the constants", remedy)
        self._drawn = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the constants and the initial gates; ``on_train_start``, where they are made, has run by now."""
        if trainer.is_global_zero and not self._drawn:
            self._drawn = True
            self._draw_constants(trainer, pl_module)
            self._draw_gates(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the gates as they are now."""
        if trainer.is_global_zero and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw_gates(trainer, pl_module)

    def _draw_constants(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from papa_lightning.figures import as_png, constants_grid  # imported late: matplotlib is slow to load

        values = constant_matrices(pl_module, self.encoder)
        if values is None:
            rank_zero_warn("AttentionImages finds no constants to draw: put it beside ConstantAttention or HeadGates.")
            return
        png = as_png(constants_grid(values, f"Constants, T = {values.shape[-1]}"))
        for logger in log_image(trainer.loggers, "attention/constants", png, trainer.global_step):
            rank_zero_warn(
                f"{type(logger).__name__} takes no images from AttentionImages: add a CSVLogger, TensorBoardLogger, "
                "WandbLogger or MLFlowLogger."
            )

    def _draw_gates(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from papa_lightning.figures import as_png, head_maps

        layers = swapped_layers(discover_encoder(pl_module, self.encoder))
        gates = [layer.gate_logits.detach().cpu() for layer in layers if isinstance(layer, GatedHeads)]
        if gates:
            shares = {f"after {trainer.global_step} steps": torch.stack(gates).double().sigmoid()}
            figure = head_maps(shares, "Gates of the heads", "share of dynamic attention")
            log_image(trainer.loggers, "attention/gates", as_png(figure), trainer.global_step)


def constant_matrices(pl_module: L.LightningModule, encoder: str | None = None) -> Tensor | None:
    """Constants of a module's encoder, (L, H, T, T), 0 for dynamic heads; None when nothing is calibrated."""
    found = discover_encoder(pl_module, encoder)
    layers = swapped_layers(found)
    if not layers or not is_calibrated(found):
        return None
    length = layers[0].max_length
    values = torch.zeros(*encoder_shape(found), length, length)
    for number, layer in enumerate(layers):
        if isinstance(layer, MatrixHeads) and layer.constants.numel():
            values[number, list(layer.constant_heads)] = layer.constants.detach().float().cpu()
    return values
