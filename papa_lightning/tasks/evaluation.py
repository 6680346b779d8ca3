"""Steps of a task: loss, scores over several processes and data sets, predictions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torchmetrics import MetricCollection

from papa_lightning.either_lightning import LightningModule, is_a
from papa_lightning.errors import PapaError
from papa_lightning.tasks.batch_checks import check_inputs, main_input
from papa_lightning.tasks.scores import Scored, StageScores


def nth_loader(loaders: Any, index: int) -> Any:
    """One of the loaders of ``trainer.val_dataloaders``: a loader, or a list, mapping or CombinedLoader of them."""
    if is_a(loaders, "CombinedLoader"):
        return loaders.flattened[index]
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return loaders[index] if isinstance(loaders, Sequence) else loaders


def unrepeated_rows(loader: Any, batch_idx: int, rows: int) -> int:
    """Number of leading rows that are no repeats, which torch's DistributedSampler adds to make all shares equal."""
    # With one batch less on some process collectives would wait for ever, so a repeat is computed and left out.
    # Of n examples process r of W holds the places r, r + W, ...; at most its last one is n or beyond, a repeat.
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None) or getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or batch_idx < len(loader) - 1:
        return rows
    last = sampler.rank + sampler.num_replicas * (sampler.num_samples - 1)
    if last < len(sampler.dataset):  # type: ignore[arg-type]
        return rows
    size = getattr(batches, "batch_size", None)
    if getattr(batches, "drop_last", False) and size and sampler.num_samples % size:
        return rows  # the repeat was in the batch that the loader dropped
    return rows - 1


Stage = Literal["val", "test"]


class EvaluatedTask(LightningModule, ABC):
    """The part of `EncoderTask` that runs the steps, with `scores` by stage; subclasses have `score` and `predict`."""

    scores: nn.ModuleDict

    @abstractmethod
    def score(self, batch: Mapping[str, Tensor], batch_idx: int, rows: int | None = None) -> Scored:
        """Loss, predictions and labels of the first `rows` of a labelled batch, None for all; see `Scored`."""

    @abstractmethod
    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict `labels`, (B,) or (B, T), -100 for none, and float32 `probabilities`, (B, C), (B, T, C) or (B, T)."""

    def check_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Refuse a batch that lacks an input of the encoder or has one of a wrong shape, without reading a value."""
        check_inputs(batch, self.hparams["max_length"])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Compute and log the loss of a labelled batch, a scalar; see `score`."""
        loss = self.score(batch, batch_idx).loss
        self.log("train/loss", loss, prog_bar=True, batch_size=len(main_input(batch)))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and metrics of a labelled batch of one of the validation sets."""
        self._evaluate(batch, batch_idx, "val", dataloader_idx)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and metrics of a labelled batch of one of the test sets."""
        self._evaluate(batch, batch_idx, "test", dataloader_idx)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Predict the classes of a batch: its `example_id` (B,), and `labels` and `probabilities` of `predict`."""
        if "example_id" not in batch:
            raise PapaError(
                "a batch to predict has no example_id, so that predictions of several processes could not be put in "
                "order: let the datamodule number its examples."
            )
        return {"example_id": batch["example_id"], **self.predict(batch)}

    def on_validation_start(self) -> None:
        """Make room for the metrics of several validation sets."""
        self._prepare_scores("val", len(self.trainer.num_val_batches))

    def on_test_start(self) -> None:
        """Make room for the metrics of several test sets."""
        self._prepare_scores("test", len(self.trainer.num_test_batches))

    def metrics_of(self, stage: Stage, dataloader_idx: int = 0) -> MetricCollection:
        """Return the metrics of one data loader of the stage ``"val"`` or ``"test"``, under their bare names.

        Logged are ``val/accuracy`` for the first loader, and for further ones ``val/accuracy/mismatched`` where the
        datamodule has `validation_names`, else ``val/accuracy/dataloader_idx_1``.
        """
        return self._scores(stage).of(dataloader_idx)

    def _evaluate(self, batch: Mapping[str, Tensor], batch_idx: int, stage: Stage, dataloader_idx: int) -> None:
        scored = self.score(batch, batch_idx, self._rows_that_count(batch, batch_idx, stage, dataloader_idx))
        scores = self._scores(stage)
        scores.update(scored, dataloader_idx)
        # The objects are logged, not their values: Lightning computes them once an epoch over all processes.
        for name, metric in scores.logged(dataloader_idx).items():
            is_loss = name.startswith(f"{stage}/loss")
            self.log(name, metric, prog_bar=not is_loss, add_dataloader_idx=False, batch_size=max(scored.count, 1))

    def _rows_that_count(self, batch: Any, batch_idx: int, stage: Stage, dataloader_idx: int) -> int | None:
        """Number of rows without an example that only fills up this process's share."""
        if self._trainer is None or self.trainer.world_size == 1:
            return None
        self.check_batch(batch)
        loaders = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        return unrepeated_rows(nth_loader(loaders, dataloader_idx), batch_idx, len(main_input(batch)))

    def _scores(self, stage: Stage) -> StageScores:
        return cast(StageScores, self.scores[stage])

    def _prepare_scores(self, stage: Stage, loaders: int) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        self._scores(stage).prepare(loaders, getattr(datamodule, "validation_names", ()))
