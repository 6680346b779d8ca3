"""Classification of images with a Transformer on their patches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from papa_lightning.checks import drop_fixed
from papa_lightning.errors import PapaError
from papa_lightning.from_scratch.base import FromScratchTask
from papa_lightning.from_scratch.configuration import TransformerConfig
from papa_lightning.tasks.metrics import classification_metrics
from papa_lightning.tasks.probes import PooledProbe
from papa_lightning.tasks.sequence_classification import ExampleClassificationTask


class ImageClassificationTask(ExampleClassificationTask, FromScratchTask):
    """Classify images with a Transformer on their patches, trained from random weights with cross-entropy.

    A batch has `pixel_values` (B, channels, height, width) and `labels` (B,). The patches are the tokens, row by row,
    without a class token, so that attention of kind "aft_conv" can slide on them: ``kind_options={"grid": True}`` where
    the image is square. Classified is the mean of the last hidden states. Logs and predictions are those of
    `SequenceClassificationTask`.

    Args:
        num_labels: The number of classes.
        image_size: Height and width in pixels, or one number for squares.
        patch_size: Side of a patch in pixels.
        num_channels: Channels of the images.
        metrics: Names of the metrics; the first one gives `score_name`.
        kwargs: Those of `FromScratchTask`, but not `max_length`: it is the number of patches.

    Raises:
        PapaError: See `FromScratchTask`; also for sizes that do not go together.

    Example:
        >>> task = ImageClassificationTask(num_labels=10, hidden_size=16, num_layers=1, num_heads=2)
        >>> task({"pixel_values": torch.zeros(3, 1, 8, 8)}).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        num_labels: int,
        image_size: int | list[int] = 8,
        patch_size: int = 1,
        num_channels: int = 1,
        metrics: Sequence[str] = ("accuracy",),
        **kwargs: Any,
    ) -> None:
        patches = TransformerConfig(image_size=image_size, patch_size=patch_size).max_position_embeddings
        drop_fixed(kwargs, f"patch_size={patch_size} on images of {image_size}", max_length=patches)
        super().__init__(num_labels=num_labels, max_length=patches, metrics=metrics, **kwargs)

    def transformer_sizes(self) -> Mapping[str, Any]:
        """Sizes of images and patches."""
        return {name: self.hparams[name] for name in ("image_size", "patch_size", "num_channels")}

    def configure_probe(self) -> nn.Module:
        """Build the probe, a `PooledProbe` of the mean."""
        return PooledProbe("mean", **self.probe_sizes)

    def configure_metrics(self) -> MetricCollection:
        """Build the metrics of `classification_metrics`."""
        return classification_metrics(self.hparams["metrics"], self.hparams["num_labels"])

    def check_batch(self, batch: Mapping[str, Tensor]) -> None:
        """See `EvaluatedTask.check_batch`."""
        images = batch.get("pixel_values") if isinstance(batch, Mapping) else None
        if not isinstance(images, Tensor) or images.dim() != 4:
            found = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise PapaError(
                f"a batch has no pixel_values of shape (batch, channels, height, width), only {found}: let the "
                "datamodule give images."
            )

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Hidden states of images `pixel_values` (B, channels, height, width): L+1 tensors (B, patches, d)."""
        self.check_batch(batch)
        output = self.encoder(pixel_values=batch["pixel_values"], output_hidden_states=True, return_dict=True)
        hidden_states: tuple[Tensor, ...] = output.hidden_states
        return hidden_states

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits of a batch, (B, C); see `EncoderTask.forward`."""
        levels = self.encode(batch)
        logits: Tensor = self.probe(levels, torch.ones_like(levels[-1][..., 0]))
        return logits
